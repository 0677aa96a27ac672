"""Who may import whom, where import-linter does not look; and what importing costs."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ("bitstream", "engines", "runtime")
PARTS = (*CORE, "bundles", "export", "serving")
INFERENCE = {"cuda", "onnxruntime", "polygraphy", "tensorrt", "tensorrt_rtx"}
TRAINING = {"diffusers", "onnx", "onnxscript", "safetensors", "torch", "transformers"}
MODULES = sorted(
    ".".join(("percoedge", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for part in CORE
    for path in (ROOT / part).rglob("*.py")
)


def imported_names(node: ast.AST) -> Iterator[str]:
    """The first parts of the names that one statement imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield node.module.partition(".")[0]


def sources(*parts: str) -> Iterator[tuple[str, ast.Module]]:
    for part in parts:
        for path in sorted((ROOT / part).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            yield name, ast.parse(path.read_text(encoding="utf-8"), name)


def run(code: str) -> str:
    """Run code in a fresh interpreter that finds the package only; return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_folders_are_imported_by_their_full_names() -> None:
    for name, tree in sources(*PARTS, "src/percoedge", "tests"):
        for node in ast.walk(tree):
            assert not {*PARTS} & {*imported_names(node)}, f"{name}:{node.lineno}"  # type: ignore[attr-defined]


def test_core_is_imported_without_training_and_inference_libraries() -> None:
    """Every module of the base install, where those libraries are missing, and nobody asks."""
    code = f"""
import importlib, sys
asked_for = []
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {TRAINING | INFERENCE!r}:
            asked_for.append(name)
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent())
for name in {[*MODULES, "percoedge", "percoedge.pillow"]!r}:
    importlib.import_module(name)
print(*asked_for)
"""
    assert run(code).split() == []


def test_exactness_is_checked_without_the_exporter() -> None:
    """What boards run (pytest tests/gpu tests/exactness) is imported, or skipped with a reason."""
    folders = [ROOT / "tests" / name for name in ("gpu", "exactness")]
    paths = [
        path for folder in folders for path in sorted(folder.glob("*.py"))
        if path.name != "torch_model.py"
    ]  # fmt: skip
    code = f"""
import importlib.util, sys
from _pytest.outcomes import Skipped
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {TRAINING!r}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent())
sys.path += {[str(folder) for folder in folders]!r}
import percoedge.export.exact.integers, percoedge.export.exact.read
for number, path in enumerate({[str(path) for path in paths]!r}):
    spec = importlib.util.spec_from_file_location(f"module_{{number}}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Skipped as reason:
        print(path.rpartition("/")[2], reason)
"""
    assert run(code).splitlines() == ["test_torch.py without PyTorch: pip install '.[export]'"]


@pytest.mark.parametrize("module", ["percoedge", "percoedge.errors"])
def test_names_cost_nothing_until_used(module: str) -> None:
    code = (
        f"import {module}, sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    )
    loaded = set(run(code).split())
    assert "percoedge" in loaded
    assert not loaded & {"numpy", "PIL", "msgspec", "constriction"}


def test_version_is_a_plain_string() -> None:
    version = run("import percoedge; print(percoedge.__version__)").strip()
    assert version.count(".") == 2


PUBLIC = """
    BackendError Bundle BundleError BundleMismatchError Codec EngineError ImageError InputError
    OutputError PercoedgeError ProgressiveImage StreamError UsageError __version__
"""


def test_public_names_are_frozen() -> None:
    """Whoever adds a name promises to keep it; whoever takes one away breaks a user's program."""
    code = "import percoedge; print(*percoedge.__all__)"
    assert run(code).split() == PUBLIC.split()
    run("from percoedge import *; Codec.load, Bundle.open, ProgressiveImage, UsageError")
    errors = (
        "import percoedge, percoedge.errors as e; print(*sorted({*e.__all__} - {*dir(percoedge)}))"
    )
    assert run(errors).split() == []
