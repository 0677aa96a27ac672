"""Plans on disk: what was stored comes back, and nothing else does."""

from __future__ import annotations

import enum
import hashlib
import os
import random
import shutil
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from percoedge.engines.contract import GraphSource
from percoedge.engines.plans.cache import CACHE_VARIABLE, PlanCache, timing_name
from percoedge.engines.plans.profiles import Profile
from percoedge.engines.plans.record import (
    BuildRequest,
    PlanRecord,
    decode_record,
    encode_record,
    rebuild_command,
)
from percoedge.engines.tensorrt import library as tensorrt_library
from percoedge.engines.tensorrt.library import Library
from percoedge.errors import BackendError, OutputError

RTX = Library("tensorrt-rtx", "1.7.1", None)
GRAPH = "ab" * 32
PLAN = bytes(range(256)) * 8
REQUEST = BuildRequest("tiny", ((512, 512), (1920, 1088)), (1, 4), 512, 3)
COMMAND = (
    "percoedge build tiny --backend tensorrt-rtx --sm 86,89 --sizes 512x512,1920x1088 "
    "--batch 1,4 --workspace 512 --level 3 --graph flow --cache {root}"
)
POSIX = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no owners and modes to look at")

Store = Callable[..., PlanRecord]


@pytest.fixture
def cache(tmp_path: Path) -> PlanCache:
    return PlanCache(tmp_path / "plans")


@pytest.fixture
def store(cache: PlanCache) -> Store:
    def keep(plan: bytes = PLAN, library: Library = RTX, **changes: Any) -> PlanRecord:
        facts = {
            "kind": "flow",
            "precision": "fp16",
            "graph_sha256": GRAPH,
            "targets": (86, 89),
            "profile": Profile({"n": (1, 1, 4)}),
            "flags": ("STRONGLY_TYPED",),
            "driver": None,
            "request": REQUEST,
            **changes,
        }
        with cache.scratch() as folder:
            (folder / "plan").write_bytes(plan)
            return cache.store(folder / "plan", library=library, **facts)

    return keep


@pytest.fixture(autouse=True)
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache does its checks alone: whoever imports a library here fails."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} was imported")

    monkeypatch.setattr(tensorrt_library, "_import", refuse)


def test_what_was_stored_is_found_and_read(cache: PlanCache, store: Store) -> None:
    record = store(driver="13.0")
    found = cache.find("flow", GRAPH, RTX, 89)
    assert found == record
    assert (found.kind, found.precision, found.targets) == ("flow", "fp16", (86, 89))
    assert (found.version, found.driver, found.size) == ("1.7.1", "13.0", len(PLAN))
    assert found.profile.covers({"n": 4}) and found.flags == ("STRONGLY_TYPED",)
    assert cache.map(found)[:] == PLAN
    assert cache.find("flow", GRAPH, RTX) == record  # where no GPU is there to ask
    assert cache.records("tensorrt-rtx") == [record] and cache.records("tensorrt") == []


def test_nothing_is_left_behind_but_plan_and_manifest(cache: PlanCache, store: Store) -> None:
    record = store()
    assert {path.name for path in cache.root.iterdir()} == {
        record.plan_name,
        f"{record.stem}.json",
    }


def test_a_new_build_replaces_the_old_one(cache: PlanCache, store: Store) -> None:
    store()
    record = store(b"newer", profile=Profile({"n": (1, 1, 8)}))
    assert len(list(cache.root.iterdir())) == 2
    assert cache.map(cache.find("flow", GRAPH, RTX, 86))[:] == b"newer"
    assert cache.find("flow", GRAPH, RTX, 86) == record


def test_of_several_the_newest_is_taken(cache: PlanCache, store: Store) -> None:
    store(b"both")
    store(b"one", targets=(89,))
    assert cache.map(cache.find("flow", GRAPH, RTX, 89))[:] == b"one"
    assert cache.map(cache.find("flow", GRAPH, RTX, 86))[:] == b"both"


def test_builds_at_the_same_time_leave_a_sound_pair(cache: PlanCache, store: Store) -> None:
    plans = [bytes([number]) * 5000 for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(store, plans))
    assert cache.map(cache.find("flow", GRAPH, RTX, 86))[:] in plans


def test_scratch_is_private_and_goes_away(cache: PlanCache) -> None:
    with cache.scratch() as folder:
        assert folder.parent == cache.root
        assert os.name == "nt" or stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "weights").write_bytes(b"x")
    assert list(cache.root.iterdir()) == []


def test_what_a_killed_build_left_is_removed_a_day_later(cache: PlanCache) -> None:
    old, new = cache.root / "partial-old", cache.root / "partial-new"
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "plan").write_bytes(b"x")
    os.utime(old, (0, 0))
    with cache.scratch():
        assert new.exists() and not old.exists()


# ---- refusals -----------------------------------------------------------------------------------


def refusal(cache: PlanCache, sm: int | None = 89, library: Library = RTX) -> str:
    with pytest.raises(BackendError) as caught:
        cache.map(cache.find("flow", GRAPH, library, sm))
    return str(caught.value)


def test_no_plan(cache: PlanCache, store: Store) -> None:
    command = "build it: percoedge build BUNDLE --backend tensorrt-rtx --graph flow --cache"
    assert "found none" in refusal(cache) and command in refusal(cache)
    store(kind="encoder")
    assert "found none" in refusal(cache) and command in refusal(cache)


def test_a_stale_plan(cache: PlanCache, store: Store) -> None:
    store(library=Library("tensorrt-rtx", "1.6.0", None))
    message = refusal(cache)
    assert "was built by version 1.6.0" in message and "tensorrt-rtx 1.7.1 on SM 89" in message
    assert message.endswith(COMMAND.format(root=cache.root))


def test_a_plan_for_another_gpu(cache: PlanCache, store: Store) -> None:
    store()
    message = refusal(cache, sm=120)
    assert "is for SM 86, 89" in message
    assert message.endswith(COMMAND.format(root=cache.root).replace("86,89", "86,89,120"))


def test_a_plan_of_another_board(cache: PlanCache, store: Store) -> None:
    """Boards of one compute capability differ in size, and kernels were timed on one of them."""
    record = store(device="Orin, 16 multiprocessors")
    assert cache.find("flow", GRAPH, RTX, 86, "Orin, 16 multiprocessors") == record
    with pytest.raises(BackendError) as caught:
        cache.find("flow", GRAPH, RTX, 86, "Orin, 8 multiprocessors")
    message = str(caught.value)
    assert "is for Orin, 16 multiprocessors, and this is Orin, 8 multiprocessors" in message
    assert message.endswith(COMMAND.format(root=cache.root))
    store(device=None)
    assert cache.find("flow", GRAPH, RTX, 86, "Orin, 8 multiprocessors").device is None


def test_a_gpu_that_no_plan_can_be_built_for(cache: PlanCache, store: Store) -> None:
    """Its number must not be among those to build for."""
    store()
    capabilities = enum.Enum("ComputeCapability", "CURRENT SM75 SM86 SM89 SM120")
    library = Library(RTX.name, RTX.version, SimpleNamespace(ComputeCapability=capabilities))
    message = refusal(cache, sm=90, library=library)
    assert message.endswith(
        "is for SM 86, 89; it is built for SM 86, 89, 120 only: take another backend "
        "(percoedge doctor lists them)"
    )
    message = refusal(cache, sm=120, library=library)
    assert message.endswith(COMMAND.format(root=cache.root).replace("86,89", "86,89,120"))


def test_a_plan_of_another_graph_or_library(cache: PlanCache, store: Store) -> None:
    store(graph_sha256=GRAPH[:16] + "0" * 48)  # its files have the very same names
    assert "is of another graph" in refusal(cache)
    store()
    assert "found none" in refusal(cache, library=Library("tensorrt", "1.7.1", None))


def test_a_plan_is_hashed_again_when_its_file_changed(
    cache: PlanCache, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A board that loads engines one at a time loads them for each picture."""
    record = store()
    hashed: list[int] = []
    real = hashlib.sha256

    def counted(data: Any = b"") -> Any:
        hashed.append(len(data))
        return real(data)

    monkeypatch.setattr("percoedge.engines.plans.cache.hashlib.sha256", counted)
    for _ in range(3):
        assert cache.map(record)[:] == PLAN
    assert hashed == [len(PLAN)]
    path = cache.root / record.plan_name
    path.write_bytes(PLAN[:-1] + b"?")
    with pytest.raises(BackendError, match="was altered"):
        cache.map(record)


def test_what_is_kept_beside_plans_is_sound_or_nothing(cache: PlanCache, store: Store) -> None:
    store()
    name = timing_name(RTX, (86, 89))
    assert cache.kept(name) is None
    cache.keep(name, b"times")
    assert cache.kept(name) == b"times"
    (cache.root / name).write_bytes((cache.root / name).read_bytes()[:-1])
    assert cache.kept(name) is None


def test_a_missing_plan(cache: PlanCache, store: Store) -> None:
    (cache.root / store().plan_name).unlink()
    assert refusal(cache).endswith(COMMAND.format(root=cache.root))


@pytest.mark.parametrize("change", [lambda plan: plan[:-1], lambda plan: plan + b"x"])
def test_a_cut_or_longer_plan(
    cache: PlanCache, store: Store, change: Callable[[bytes], bytes]
) -> None:
    path = cache.root / store().plan_name
    path.write_bytes(change(path.read_bytes()))
    assert refusal(cache).endswith(COMMAND.format(root=cache.root))


def test_a_thousand_altered_bytes(cache: PlanCache, store: Store) -> None:
    """Every byte of the manifest, and bytes of the plan up to a thousand: each one is refused."""
    record = store()
    plan, manifest = cache.root / record.plan_name, cache.root / f"{record.stem}.json"
    places = [(manifest, at) for at in range(manifest.stat().st_size)]
    dice = random.Random(1)
    places += [(plan, at) for at in dice.sample(range(len(PLAN)), 1000 - len(places))]
    assert len(places) == 1000
    refused = 0
    for path, at in places:
        with path.open("r+b", buffering=0) as file:
            file.seek(at)
            sound = file.read(1)
            file.seek(at)
            file.write(bytes([sound[0] ^ dice.randrange(1, 256)]))
            assert "percoedge build" in refusal(cache)
            refused += 1
            file.seek(at)
            file.write(sound)
    assert refused == 1000
    assert cache.map(cache.find("flow", GRAPH, RTX, 89))[:] == PLAN


def test_an_edited_manifest_is_refused_even_if_it_says_the_same(
    cache: PlanCache, store: Store
) -> None:
    manifest = cache.root / f"{store().stem}.json"
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    assert "it was altered" in refusal(cache)


def test_plans_of_a_bundle_are_not_looked_at(cache: PlanCache, store: Store) -> None:
    record = store()
    bundle = cache.root.with_name("bundle")
    shutil.move(cache.root, bundle)
    assert (bundle / record.plan_name).exists()
    assert "found none" in refusal(cache)


# ---- whose files they are -----------------------------------------------------------------------


@POSIX
@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
def test_a_folder_that_others_may_write_to(cache: PlanCache, store: Store, mode: int) -> None:
    store()
    cache.root.chmod(mode)
    message = refusal(cache)
    assert f"got mode {mode:o}" in message and CACHE_VARIABLE in message
    assert ("chmod go-w" in message) == (mode != 0o1777)
    assert cache.records("tensorrt-rtx") == []
    with pytest.raises(BackendError, match="nobody else may write"), cache.scratch():
        pass


@POSIX
@pytest.mark.parametrize("suffix", [".plan", ".json"])
def test_files_that_others_may_write_to(cache: PlanCache, store: Store, suffix: str) -> None:
    store()
    next(cache.root.glob(f"*{suffix}")).chmod(0o664)
    assert "got mode 664" in refusal(cache)


@POSIX
def test_files_of_other_users_are_refused_and_those_of_root_are_not(
    cache: PlanCache, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store()
    owner = cache.root.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner == 0:
        assert cache.map(cache.find("flow", GRAPH, RTX, 89))[:] == PLAN
    else:
        assert f"got owner {owner}" in refusal(cache)


@POSIX
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can chown")
@pytest.mark.parametrize("pattern", [".", "*.plan", "*.json"])
def test_files_given_to_another_user(cache: PlanCache, store: Store, pattern: str) -> None:
    store()
    path = cache.root if pattern == "." else next(cache.root.glob(pattern))
    os.chown(path, 12345, -1)
    assert "got owner 12345" in refusal(cache)


@POSIX
@pytest.mark.parametrize("suffix", [".plan", ".json"])
def test_links_are_not_followed(cache: PlanCache, store: Store, suffix: str) -> None:
    store()
    path = next(cache.root.glob(f"*{suffix}"))
    elsewhere = cache.root.with_name("elsewhere")
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)
    assert "expected a file that can be read" in refusal(cache)


@POSIX
def test_a_pipe_does_not_block(cache: PlanCache, store: Store) -> None:
    path = cache.root / store().plan_name
    path.unlink()
    os.mkfifo(path)
    assert "expected a file, got something else" in refusal(cache)


@POSIX
def test_the_folder_itself_may_be_a_link(cache: PlanCache, store: Store, tmp_path: Path) -> None:
    store()
    link = tmp_path / "link"
    link.symlink_to(cache.root)
    linked = PlanCache(link)
    assert linked.map(linked.find("flow", GRAPH, RTX, 89))[:] == PLAN


@POSIX
def test_files_are_for_others_to_read_only(cache: PlanCache, store: Store) -> None:
    before = os.umask(0o002)
    try:
        store()
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in cache.root.iterdir()} == {0o644}
    assert cache.map(cache.find("flow", GRAPH, RTX, 89))[:] == PLAN


def test_a_cache_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = PlanCache(tmp_path / "file" / "plans")
    with pytest.raises(OutputError, match=f"another folder with --cache or {CACHE_VARIABLE}"):
        cache.scratch().__enter__()
    with pytest.raises(BackendError, match="expected a folder for engine files"):
        PlanCache(tmp_path / "file").find("flow", GRAPH, RTX)


# ---- names --------------------------------------------------------------------------------------


@POSIX
def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert PlanCache().root == tmp_path / "percoedge" / "engines"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert PlanCache().root == Path.home() / ".cache" / "percoedge" / "engines"
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "mine"))
    assert PlanCache().root == tmp_path / "mine"


def test_the_digest_of_a_graph_covers_model_data_and_locations() -> None:
    def digest(model: bytes = b"m", **data: bytes) -> str:
        return GraphSource("flow", "fp16", model, data, (), ()).sha256

    others = [digest(b"n", a=b"1"), digest(a=b"2"), digest(b=b"1"), digest(), digest(a=b"1", b=b"")]
    assert len({digest(a=b"1"), *others}) == 6
    assert digest(a=b"1", b=b"2") == digest(b=b"2", a=b"1")


def test_the_command_that_builds_again() -> None:
    assert rebuild_command("tensorrt") == "percoedge build BUNDLE --backend tensorrt"
    assert rebuild_command("tensorrt", targets=(87,)) == rebuild_command("tensorrt")
    request = BuildRequest("/my models/a")
    command = rebuild_command("tensorrt-rtx", targets=(120,), request=request)
    assert command == "percoedge build '/my models/a' --backend tensorrt-rtx --sm 120"


def test_a_manifest_is_taken_back_as_it_was_written_only(store: Store) -> None:
    record = store()
    data = encode_record(record)
    assert decode_record(data) == record
    other = encode_record(store(targets=(80,)))
    for broken in (
        b"",
        b"{}",
        b"[" * 100_000,
        b"\xff",
        data.replace(b'"kind"', b'"sort"'),
        data[1:],
    ):
        with pytest.raises(ValueError, match="manifest"):
            decode_record(broken)
    with pytest.raises(ValueError, match="altered"):
        decode_record(data.replace(b"86", b"87"))
    with pytest.raises(ValueError, match="altered"):
        decode_record(other[: other.index(b'"sha256"')] + data[data.index(b'"sha256"') :])
