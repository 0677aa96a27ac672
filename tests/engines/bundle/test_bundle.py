"""Bundles in directories and archives: reading, and every way in which one can be wrong."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from percoedge.bundles import shipped_bundles
from percoedge.engines import memory
from percoedge.engines.bundle import Bundle, GraphFiles, pack_zip, storage, write_manifest
from percoedge.engines.bundle import bundle as bundle_module
from percoedge.engines.contract import TensorSpec
from percoedge.errors import BackendError, BundleError, OutputError


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.fixture
def archive(pristine: Path, tmp_path: Path) -> Path:
    path = tmp_path / "toy.zip"
    pack_zip(Bundle.open(pristine), path)
    return path


@pytest.fixture(scope="module")
def zipped(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("zipped") / "toy.zip"
    pack_zip(Bundle.open(pristine), path)
    return path.read_bytes()


def zip_files(folder: Path, path: Path, renamed: Callable[[str], str] = str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, renamed(file.relative_to(folder).as_posix()))


class TestReading:
    def test_a_graph_comes_with_its_data_and_specs(self, bundle: Bundle, pristine: Path) -> None:
        source = bundle.read("flow", "fp32")
        assert source.model == (pristine / "flow-fp32.onnx").read_bytes()
        assert source.data == {"weights.bin": (pristine / "weights.bin").read_bytes()}
        assert source.inputs[0] == TensorSpec("x", "float32", ("n", 4, "2*h", "2*w"))
        assert [spec.name for spec in source.outputs] == ["x_next"]
        assert source.size_bytes == bundle.size_bytes(["flow"], "fp32")

    def test_the_fingerprint_is_four_bytes_of_the_manifest_s(self, bundle: Bundle) -> None:
        assert bundle.fingerprint.hex() == bundle.manifest.fingerprint[:8]

    def test_an_archive_reads_like_the_directory(self, bundle: Bundle, archive: Path) -> None:
        packed = Bundle.open(archive)
        assert packed.manifest == bundle.manifest
        assert packed.kinds == bundle.kinds == ("encoder", "flow", "decoder")
        for kind in bundle.kinds:
            assert packed.read(kind, "fp32") == bundle.read(kind, "fp32")
        packed.verify()

    def test_data_below_the_model_s_folder_is_named_from_there(
        self, pristine: Path, folder: Path
    ) -> None:
        (folder / "a/b").mkdir(parents=True)
        for name in ("a/flow.onnx", "a/b/w.bin"):
            shutil.copy(pristine / "weights.bin", folder / name)
        manifest = Bundle.open(pristine).manifest
        files = GraphFiles(
            (), (TensorSpec("y", "int8", ()),), {"fp32": ("a/flow.onnx", "a/b/w.bin")}
        )
        made = write_manifest(
            folder,
            name="x",
            family="tiny",
            language=manifest.language,
            codec=manifest.codec,
            graphs={"flow": files},
            licence="-",
        )
        assert list(made.read("flow", "fp32").data) == ["b/w.bin"]

    def test_unknown_graphs_and_variants_are_refused(self, bundle: Bundle) -> None:
        with pytest.raises(
            BundleError, match="expected a graph 'text', got encoder, flow, decoder"
        ):
            bundle.read("text", "fp32")
        with pytest.raises(BundleError, match="variant 'fp8' of graph 'decoder', got fp32, fp16"):
            bundle.read("decoder", "fp8")

    def test_fp32_stands_in_for_a_missing_int8(self, bundle: Bundle) -> None:
        assert bundle.read("flow", "int8") == bundle.read("flow", "fp32")
        assert bundle.size_bytes(["flow"], "int8") == bundle.size_bytes(["flow"], "fp32")

    def test_int8_is_read_where_it_is(self, pristine: Path, folder: Path) -> None:
        plain = Bundle.open(pristine)
        (folder / "bytes.onnx").write_bytes(b"bytes")
        graph = plain.manifest.graphs["decoder"]
        names = {"fp32": ("decoder/model.onnx",), "int8": ("bytes.onnx",)}
        made = write_manifest(
            folder,
            name="x",
            family="tiny",
            language=plain.manifest.language,
            codec=plain.codec,
            graphs={"decoder": GraphFiles(graph.input_specs, graph.output_specs, names)},
            licence="-",
        )
        source = made.read("decoder", "int8")
        assert (source.variant, source.model) == ("int8", b"bytes")
        assert made.read("decoder", "fp32").model != b"bytes"

    def test_memory_is_asked_for_before_reading(
        self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(memory, "available_bytes", lambda: 100)
        with pytest.raises(BackendError, match="reading graph 'flow': expected .* free memory"):
            bundle.read("flow", "fp32")


class TestOpening:
    def test_shipped_names_come_first(
        self, pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "toy").mkdir()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(bundle_module, "shipped_bundles", lambda: {"toy": pristine})
        assert Bundle.open("toy").path == pristine
        for path in ("./toy", Path("toy")):
            with pytest.raises(BundleError, match=r"expected a file 'manifest\.json'"):
                Bundle.open(path)

    def test_shipped_bundles_hold_a_manifest(self) -> None:
        for name, path in shipped_bundles().items():
            assert path.name == name
            assert (path / "manifest.json").is_file()

    @pytest.mark.parametrize("name", ["no-such-bundle", "a/b", ""])
    def test_what_is_not_there(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(
            BundleError, match=f"expected a bundle directory, .* got '{name}'; check"
        ):
            Bundle.open(name)

    def test_what_is_no_archive(self, pristine: Path) -> None:
        with pytest.raises(BundleError, match="directory or a sound .zip of one"):
            Bundle.open(pristine / "weights.bin")

    def test_a_huge_manifest_is_not_read(self, folder: Path) -> None:
        with (folder / "manifest.json").open("ab") as file:
            file.truncate(2 << 20)
        with pytest.raises(BundleError, match="at most 1048576 bytes, got 2097152"):
            Bundle.open(folder)


class TestAlteredFiles:
    @pytest.mark.parametrize("name", ["flow-fp32.onnx", "weights.bin"])
    @pytest.mark.parametrize("packed", [False, True])
    def test_one_flipped_bit(self, folder: Path, tmp_path: Path, name: str, packed: bool) -> None:
        flip(folder / name)
        if packed:
            zip_files(folder, tmp_path / "toy.zip")
        spoilt = Bundle.open(tmp_path / "toy.zip" if packed else folder)
        for use in (
            lambda: spoilt.read("flow", "fp32"),
            spoilt.verify,
            lambda: pack_zip(spoilt, tmp_path / "out.zip"),
        ):
            with pytest.raises(BundleError, match=f"'{name}': expected SHA-256 .*was altered"):
                use()
        assert not (tmp_path / "out.zip").exists()
        spoilt.read("decoder", "fp32")

    @pytest.mark.parametrize("change", [b"", b"more"])
    def test_another_size(self, folder: Path, change: bytes) -> None:
        path = folder / "weights.bin"
        path.write_bytes(path.read_bytes() + change if change else b"")
        with pytest.raises(BundleError, match=r"'weights\.bin': expected 32 bytes, got"):
            Bundle.open(folder).read("flow", "fp32")
        with pytest.raises(BundleError, match="expected 32 bytes"):
            Bundle.open(folder).verify()

    def test_a_missing_file(self, folder: Path) -> None:
        (folder / "weights.bin").unlink()
        with pytest.raises(BundleError, match=r"expected a file 'weights\.bin', cannot find it"):
            Bundle.open(folder).read("flow", "fp32")

    def test_a_directory_in_its_place(self, folder: Path) -> None:
        (folder / "weights.bin").unlink()
        (folder / "weights.bin").mkdir()
        with pytest.raises(BundleError, match="to be a file"):
            Bundle.open(folder).read("flow", "fp32")

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
    def test_a_pipe_in_its_place_does_not_hang(self, folder: Path) -> None:
        (folder / "weights.bin").unlink()
        os.mkfifo(folder / "weights.bin")
        with pytest.raises(BundleError, match="to be a file"):
            Bundle.open(folder).read("flow", "fp32")


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
class TestLinks:
    def test_a_link_inside_is_followed(self, folder: Path) -> None:
        (folder / "weights.bin").rename(folder / "real.bin")
        (folder / "weights.bin").symlink_to("real.bin")
        Bundle.open(folder).read("flow", "fp32")

    def test_a_linked_bundle_is_opened(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(folder)
        Bundle.open(tmp_path / "link").verify()

    @pytest.mark.parametrize("what", ["manifest.json", "weights.bin", "decoder"])
    def test_a_link_that_leaves_is_refused(self, folder: Path, tmp_path: Path, what: str) -> None:
        (folder / what).rename(tmp_path / "outside")
        (folder / what).symlink_to(tmp_path / "outside")
        with pytest.raises(BundleError, match="is a link that leaves the bundle"):
            Bundle.open(folder).verify()

    def test_a_loop_is_refused(self, folder: Path) -> None:
        (folder / "weights.bin").unlink()
        (folder / "weights.bin").symlink_to("weights.bin")
        with pytest.raises(BundleError, match="cannot find it"):
            Bundle.open(folder).verify()


class TestArchives:
    def test_packing_twice_gives_the_same_bytes(self, archive: Path, tmp_path: Path) -> None:
        again = tmp_path / "again.zip"
        pack_zip(Bundle.open(archive), again)
        assert again.read_bytes() == archive.read_bytes()
        with zipfile.ZipFile(again) as opened:
            names = opened.namelist()
        assert names[0] == "manifest.json"
        assert sorted(names).count("weights.bin") == 1

    def test_a_bundle_can_be_packed_over_itself(self, archive: Path) -> None:
        pack_zip(Bundle.open(archive), archive)
        Bundle.open(archive).verify()

    def test_a_place_that_cannot_be_written(self, bundle: Bundle, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="cannot be written"):
            pack_zip(bundle, tmp_path / "no/such/folder.zip")

    def test_a_bundle_below_the_root_is_not_found(self, pristine: Path, tmp_path: Path) -> None:
        zip_files(pristine, tmp_path / "a.zip", lambda name: f"toy/{name}")
        with pytest.raises(BundleError, match=r"'manifest\.json' at the root .* found toy/"):
            Bundle.open(tmp_path / "a.zip")

    @pytest.mark.parametrize(
        "name", ["/etc/passwd", "../x", "a/../../x", "a\\b", "C:/x", "x\x00.onnx", "a//b", "./x"]
    )
    def test_hostile_names(self, archive: Path, name: str) -> None:
        with zipfile.ZipFile(archive, "a") as opened:
            entry = zipfile.ZipInfo("placeholder")
            entry.filename = entry.orig_filename = name
            opened.writestr(entry, b"")
        with pytest.raises(BundleError, match="unsafe entry: expected a relative path"):
            Bundle.open(archive)

    def test_folders_are_allowed(self, archive: Path) -> None:
        with zipfile.ZipFile(archive, "a") as opened:
            opened.writestr("licences/", b"")
        Bundle.open(archive).verify()

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_a_name_twice(self, archive: Path) -> None:
        with zipfile.ZipFile(archive, "a") as opened:
            opened.writestr("weights.bin", b"")
        with pytest.raises(BundleError, match=r"'weights\.bin' is there twice"):
            Bundle.open(archive)

    def test_other_methods(self, archive: Path) -> None:
        with zipfile.ZipFile(archive, "a") as opened:
            opened.writestr("x", b"", zipfile.ZIP_LZMA)
        with pytest.raises(BundleError, match="'x' stored or deflated, got method 14"):
            Bundle.open(archive)

    def test_encryption(self, archive: Path) -> None:
        data = bytearray(archive.read_bytes())
        data[data.rindex(b"PK\x01\x02") + 8] |= 1
        archive.write_bytes(data)
        with pytest.raises(BundleError, match="is encrypted"):
            Bundle.open(archive)

    def test_too_many_entries(self, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(storage, "_MAX_ZIP_ENTRIES", 3)
        with pytest.raises(BundleError, match="at most 3 entries, got 6"):
            Bundle.open(archive)

    def test_a_bomb_is_not_unpacked(self, folder: Path, tmp_path: Path) -> None:
        """32 bytes are promised; the archive holds 64 MiB of zeros in 64 KiB."""
        bomb = tmp_path / "bomb.zip"
        with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in (p for p in folder.rglob("*") if p.is_file() and p.name != "weights.bin"):
                archive.write(file, file.relative_to(folder).as_posix())
            archive.writestr("weights.bin", bytes(64 << 20))
        for use in (lambda b: b.read("flow", "fp32"), Bundle.verify):
            with pytest.raises(BundleError, match="expected 32 bytes, got 67108864"):
                use(Bundle.open(bomb))

    def test_a_bomb_that_lies_about_its_size(self, folder: Path, tmp_path: Path) -> None:
        bomb = tmp_path / "bomb.zip"
        (folder / "weights.bin").write_bytes(bytes(1 << 20))
        zip_files(folder, bomb)
        data = bomb.read_bytes()
        bomb.write_bytes(data.replace((1 << 20).to_bytes(4, "little"), (32).to_bytes(4, "little")))
        with pytest.raises(BundleError):
            Bundle.open(bomb).read("flow", "fp32")

    def test_a_bomb_for_a_manifest(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("manifest.json", b" " * (8 << 20))
        with pytest.raises(BundleError, match="manifest of at most 1048576 bytes"):
            Bundle.open(tmp_path / "a.zip")

    @settings(max_examples=150, deadline=None)
    @given(junk=st.binary(min_size=1, max_size=8), at=st.integers(0, 100_000), cut=st.booleans())
    def test_spoilt_archives_raise_nothing_else(
        self,
        zipped: bytes,
        tmp_path_factory: pytest.TempPathFactory,
        junk: bytes,
        at: int,
        cut: bool,
    ) -> None:
        at %= len(zipped)
        path = tmp_path_factory.getbasetemp() / "spoilt.zip"
        path.write_bytes(zipped[:at] + junk + (b"" if cut else zipped[at + len(junk) :]))
        try:
            Bundle.open(path).verify()
        except BundleError as error:
            assert "spoilt.zip" in str(error)


class TestWriting:
    def write(self, folder: Path, **changes: object) -> Bundle:
        manifest = Bundle.open(folder).manifest
        files = GraphFiles(
            (), (TensorSpec("y", "int8", ("n", 2)),), {"fp32": ("flow-fp32.onnx", "weights.bin")}
        )
        values = {
            "name": "made",
            "family": "tiny",
            "language": manifest.language,
            "codec": manifest.codec,
            "graphs": {"flow": files},
            "licence": "CC0-1.0",
            **changes,
        }
        return write_manifest(folder, **values)  # type: ignore[arg-type]

    def test_hashes_and_sizes_are_those_of_the_files(self, folder: Path) -> None:
        record = self.write(folder).manifest.graphs["flow"].variants["fp32"].data[0]
        data = (folder / "weights.bin").read_bytes()
        assert (record.sha256, record.size) == (hashlib.sha256(data).hexdigest(), len(data))
        assert stat.S_ISREG((folder / "manifest.json").stat().st_mode)
        assert not list(folder.glob("*.partial"))

    def test_the_fingerprint_follows_the_language_and_not_the_files(self, folder: Path) -> None:
        first = self.write(folder).fingerprint
        flip(folder / "weights.bin")  # another decoder of the same streams
        assert self.write(folder, name="other", licence="other").fingerprint == first
        assert self.write(folder, language="2" * 64).fingerprint != first

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"name": "../x"}, "matching regex"),
            ({"family": "Other one"}, "matching regex"),
            ({"graphs": {}}, "length >= 1"),
            ({"provenance": {"when": object()}}, "unsupported"),
            ({"provenance": {"loss": object}}, "unsupported"),
        ],
    )
    def test_what_could_not_be_opened_is_not_written(
        self, folder: Path, changes: dict[str, object], message: str
    ) -> None:
        before = (folder / "manifest.json").read_bytes()
        with pytest.raises(BundleError, match=message):
            self.write(folder, **changes)
        assert (folder / "manifest.json").read_bytes() == before

    @pytest.mark.parametrize("name", ["../toy/weights.bin", "missing.onnx"])
    def test_files_must_be_there(self, folder: Path, name: str) -> None:
        files = GraphFiles((), (TensorSpec("y", "int8", ()),), {"fp32": (name,)})
        with pytest.raises(BundleError, match="expected a"):
            self.write(folder, graphs={"flow": files})
