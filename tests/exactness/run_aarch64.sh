#!/usr/bin/env bash
# Runs run_onnxruntime.py on an emulated AArch64 processor: the true AArch64 kernels of ONNX Runtime
# and numpy, in an AArch64 Python, under QEMU. prepare.sh fetches all of them.
#
#   run_aarch64.sh PROCESSOR ARGUMENTS...
#
# PROCESSOR: cortex-a57 (NEON), cortex-a76 (with dot products), max (SVE, int8 and bfloat16 matrix
# products) or max-sme (matrix tiles as well). One at a time: they share the file of their cores.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
cache="${PERCOEDGE_EXACTNESS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/percoedge-ci/exactness}/aarch64"
declare -A models=(
    [cortex-a57]=cortex-a57
    [cortex-a76]=cortex-a76
    # Pointer authentication in full is slow to emulate, and no part of the arithmetic.
    [max]=max,pauth-impdef=on,sme=off
    [max-sme]=max,pauth-impdef=on
)
declare -A parts=([cortex-a57]=0xd07 [cortex-a76]=0xd0b [max]=0xd0c [max-sme]=0xd0c)
processor="$1"
shift

# ONNX Runtime looks up the cores here, and does not survive finding those of another architecture.
# QEMU opens this file in place of the machine's own.
mkdir -p "$cache/root/proc"
for core in 0 1; do
    printf 'processor\t: %d\nBogoMIPS\t: 100.00\nFeatures\t: fp asimd crc32 cpuid\n' "$core"
    printf 'CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x1\n'
    printf 'CPU part\t: %s\nCPU revision\t: 0\n\n' "${parts[$processor]}"
done > "$cache/root/proc/cpuinfo"

python=("$cache"/root/usr/bin/python3.[0-9]*)
export PYTHONPATH="$here/../../src:$here:$cache/site" PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1
exec "$cache/qemu" -L "$cache/root" -cpu "${models[$processor]}" \
    "${python[0]}" "$here/run_onnxruntime.py" "$@"
