"""Cases in processes of their own, and how these end."""

from __future__ import annotations

import signal
import subprocess

import pytest

from percoedge.errors import BackendError
from percoedge.runtime.bench import worker
from percoedge.runtime.bench.case import Case


def test_a_killed_case_is_told_to_lack_memory() -> None:
    ended = subprocess.CompletedProcess([], -signal.SIGKILL, "", "")
    assert "memory ran short" in worker._end_of(ended)
    crashed = subprocess.CompletedProcess([], 1, "", "Traceback\nValueError: odd\n")
    assert "ValueError: odd" in worker._end_of(crashed)


def test_errors_come_back_as_what_they_were() -> None:
    with pytest.raises(BackendError, match="tensorrt"):
        worker.encode_in_process(Case("tiny", "tensorrt", 16, 16, 1, 1, None))
