"""Ctrl-C ends a command with exit code 130 and no traceback, whatever it is doing."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from percoedge import bundles
from percoedge.runtime.cli.interrupts import Interrupts, is_interrupt
from percoedge.runtime.cli.main import main

ROOT = Path(__file__).parents[3]
GOLDEN = Path(bundles.__file__).parent / "golden.pco"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform == "win32", reason="sends interrupts to itself as terminals do"
    ),
]

INTERRUPT_AT_IMPORT = """
import os, runpy, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
sys.argv = ["percoedge", "decode", {stream!r}, "out.png"]
runpy.run_module("percoedge", run_name="__main__", alter_sys=True)
"""
CONSOLE_SCRIPT = """
import signal, sys
from percoedge.runtime.cli.main import main
set_handler = signal.signal
def announce(*arguments):
    signal.signal = set_handler
    before = set_handler(*arguments)
    print("begins", flush=True)
    return before
signal.signal = announce
sys.exit(main())
"""
LIBRARIES = {
    "makes another error of it": """
        except BaseException as error:
            raise ImportError("cannot be loaded") from error""",
    "loses it": """
        except BaseException:
            pass""",
}


def environment(*folders: Path) -> dict[str, str]:
    """Variables of a process that finds the package, and first of all what is in the folders."""
    paths = os.pathsep.join(map(str, (*folders, ROOT / "src")))
    return {**os.environ, "PYTHONPATH": paths, "PERCOEDGE_DEBUG": "0"}


def assert_interrupted(process: subprocess.CompletedProcess[bytes], folder: Path) -> None:
    assert (process.returncode, process.stderr) == (130, b"percoedge: error: interrupted\n")
    assert not [path.name for path in folder.iterdir() if "out" in path.name or "tmp" in path.name]


@pytest.mark.parametrize(
    "name",
    [
        *("argparse", "percoedge.runtime.cli.commands.decode", "numpy._core._exceptions"),
        *("msgspec", "PIL.Image", "onnxruntime", "percoedge.runtime.text"),
    ],
)
def test_while_a_module_is_imported(name: str, tmp_path: Path) -> None:
    code = INTERRUPT_AT_IMPORT.format(name=name, stream=str(GOLDEN))
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True
    )
    assert_interrupted(process, tmp_path)


def test_while_the_entry_point_is_imported(tmp_path: Path) -> None:
    code = INTERRUPT_AT_IMPORT.format(name="percoedge.runtime.cli.main", stream=str(GOLDEN))
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True
    )
    assert (process.returncode, process.stderr) == (130, b"")


@pytest.mark.parametrize("handling", LIBRARIES)
@pytest.mark.parametrize("library", ["constriction", "onnxruntime"])
def test_in_a_library_that(library: str, handling: str, tmp_path: Path) -> None:
    """The first is optional and the second needed: without the latter, the exit code is 4."""
    (tmp_path / f"{library}.py").write_text(
        f"""
def load():
        import os, signal
        try:
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):
                pass
{LIBRARIES[handling]}
load()
"""
    )
    process = subprocess.run(
        [sys.executable, "-m", "percoedge", "decode", GOLDEN, "out.png", "-q"],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
    )
    assert_interrupted(process, tmp_path)


@pytest.mark.parametrize("delay", [0, 0.05, 0.2, 0.6, 1.5])
def test_after(delay: float, tmp_path: Path) -> None:
    command = ["decode", str(GOLDEN), "out.png", "--steps", "255"]  # would take many seconds
    process = subprocess.Popen(
        [sys.executable, "-c", CONSOLE_SCRIPT, *command],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    done = subprocess.CompletedProcess(command, process.returncode, out, err)
    assert_interrupted(done, tmp_path)


class Finalized:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)
        time.sleep(0)


def in_a_finalizer() -> None:
    Finalized()


def in_a_callback_of_c() -> None:
    numbers = (ctypes.c_int * 2)(1, 2)
    compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)

    def interrupt(*_: object) -> int:
        signal.raise_signal(signal.SIGINT)
        return 0

    ctypes.CDLL(None).qsort(numbers, 2, ctypes.sizeof(ctypes.c_int), compare(interrupt))


@pytest.mark.parametrize("call", [in_a_finalizer, in_a_callback_of_c])
def test_where_nothing_can_be_raised(
    call: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
        call()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            time.sleep(0.01)
    assert interrupts.seen
    assert capsys.readouterr().err == ""


def test_what_came_of_an_interrupt() -> None:
    error, other = ImportError("numpy"), ValueError()
    assert not is_interrupt(error)
    error.__cause__ = other
    other.__context__ = KeyboardInterrupt()
    assert is_interrupt(error)
    other.__context__ = error
    assert not is_interrupt(error)


def test_everything_is_put_back() -> None:
    hook = sys.unraisablehook
    with Interrupts() as interrupts:
        pass
    assert not interrupts.seen
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert sys.unraisablehook is hook


def test_handlers_of_others_are_left_alone() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert not interrupts.seen


def test_commands_run_in_other_threads() -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(["--version"])))
    thread.start()
    thread.join()
    assert codes == [0]
