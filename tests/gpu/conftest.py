"""What needs an NVIDIA GPU: ``pytest -m gpu``. Everything is skipped, with the reason, without one.

Plans of TensorRT are built first, into a folder of the test's own. PERCOEDGE_BUNDLE names another
bundle than the one that is shipped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from percoedge.engines.bundle import Bundle
from percoedge.engines.contract import Backend
from percoedge.engines.onnxruntime.backend import OnnxRuntimeBackend
from percoedge.engines.plans.cache import CACHE_VARIABLE, PlanCache
from percoedge.engines.selection import BACKENDS
from percoedge.engines.tensorrt.backend import TensorRtBackend
from percoedge.engines.tensorrt.cuda import Gpu
from percoedge.engines.tensorrt.library import LIBRARIES, find_library, supported_targets
from percoedge.errors import BackendError
from percoedge.runtime.cli.main import main

_HERE = Path(__file__).parent
GPU_BACKENDS = [name for name in BACKENDS if name != "onnxruntime-cpu"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker("gpu")


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    return Bundle.open(os.environ.get("PERCOEDGE_BUNDLE") or "tiny")


@pytest.fixture(scope="session")
def plans(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Callable[[str], PlanCache]:
    """Builds the plans of a library at the first call; raises BackendError where it is missing."""
    root = tmp_path_factory.mktemp("plans")
    built: set[str] = set()

    def build(library: str) -> PlanCache:
        listed, gpu = supported_targets(find_library(library)), Gpu()
        if listed and gpu.sm not in listed:
            raise BackendError(f"{library} knows SM {', '.join(map(str, listed))}, not {gpu.sm}")
        if library not in built:
            arguments = ["build", str(bundle.path), "--backend", library, "--cache", str(root)]
            assert main(arguments) == 0
            built.add(library)
        return PlanCache(root)

    return build


@pytest.fixture(scope="session")
def make_backend(plans: Callable[[str], PlanCache]) -> Callable[[str], Backend]:
    """Makes a backend of a name; skips the test where it does not work."""

    def make(name: str) -> Backend:
        try:
            if name in LIBRARIES:
                return TensorRtBackend(name, plans(name))
        except BackendError as error:
            pytest.skip(str(error))
        backend = OnnxRuntimeBackend(name)
        if reason := backend.missing():
            pytest.skip(reason)
        return backend

    return make


@pytest.fixture(scope="session", params=GPU_BACKENDS)
def backend(request: pytest.FixtureRequest, make_backend: Callable[[str], Backend]) -> Backend:
    return make_backend(request.param)


@pytest.fixture(scope="session", params=LIBRARIES)
def tensorrt(
    request: pytest.FixtureRequest, make_backend: Callable[[str], Backend]
) -> Iterator[Backend]:
    """One of TensorRT's forms; processes that a test starts find the same plans."""
    backend = make_backend(request.param)
    assert isinstance(backend, TensorRtBackend)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(backend.cache.root))
        yield backend
