"""The wheel, built by way of the source distribution, holds every package and all data."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PARTS = ("bitstream", "bundles", "engines", "export", "runtime", "serving")


def left_out(folder: str, names: list[str]) -> set[str]:
    """Caches, and the shipped bundles, which are large."""
    bundles = {name for name in names if Path(folder, name).is_dir()}
    return {"__pycache__"} | (bundles if Path(folder).name == "bundles" else set())


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is packed, with a small bundle in place of the shipped ones."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(
        ROOT / "src",
        tree / "src",
        symlinks=True,
        ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"),
    )
    for part in PARTS:
        shutil.copytree(ROOT / part, tree / part, ignore=left_out)
    (tree / "bundles" / "small").mkdir()
    for name in ("manifest.json", "flow.onnx", "flow.data"):
        (tree / "bundles" / "small" / name).write_text(name)
    return tree


@pytest.fixture(scope="module")
def built(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the source distribution and the wheel built from it."""
    out = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(tree)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return out


def expected_files(tree: Path) -> set[str]:
    """Every module and data file of the tree, as it is named below the package."""
    source = tree / "src" / "percoedge"
    files = {path.name for path in source.glob("*.py")} | {"py.typed"}
    for part in PARTS:
        for path in (tree / part).rglob("*"):
            if path.is_file():
                files.add(path.relative_to(tree).as_posix())
    return {f"percoedge/{name}" for name in files}


def test_wheel_holds_every_file(tree: Path, built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if name.startswith("percoedge/")}
        links = [info.filename for info in archive.infolist() if info.external_attr >> 28 == 0xA]
    assert names == expected_files(tree)
    assert "percoedge/bundles/small/flow.data" in names
    for name in ("demo.jpg", "golden.json", "golden.pco"):
        assert f"percoedge/bundles/{name}" in names
    assert links == []


def test_wheel_names_the_licence_and_the_command(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        texts = {
            Path(name).name: archive.read(name).decode()
            for name in archive.namelist()
            if ".dist-info/" in name
        }
    assert "percoedge = percoedge.runtime.cli.main:main" in texts["entry_points.txt"]
    assert "License-Expression: Apache-2.0" in texts["METADATA"]
    assert "Apache License" in texts["LICENSE"]
    assert "NOTICE" in texts


def test_source_distribution_holds_files_in_place_of_links(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        members = {member.name.partition("/")[2]: member for member in tar.getmembers()}
    assert members["src/percoedge/runtime"].isdir()
    assert members["src/percoedge/bundles/small/manifest.json"].isfile()
    assert not any(member.issym() for member in members.values())


def test_wheel_is_imported_from_its_own_files(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import percoedge, percoedge.bitstream, percoedge.engines, percoedge.runtime.files\n"
        "print(percoedge.__version__, percoedge.runtime.files.__file__)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    version, _, path = result.stdout.strip().partition(" ")
    assert Path(path) == tmp_path / "percoedge" / "runtime" / "files.py"
    assert wheel.name.split("-")[1] == version
