"""What `check` says of a line's keys and versions; the keys are a real server's, the versions real files."""

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
import torch

from tests.worker.helpers import small_settings
from worker.check_lines import NOTE, OK, largest_version, look_at_room, look_at_streams, look_at_versions, wrong_keys
from worker.errors import ModelError, SnapshotError, StoreError, WorkerError
from worker.line import Line
from worker.settings import Settings, line_configs
from worker.snapshots import SnapshotStore, stem_of
from worker.streams.line_streams import ANSWERING, LineStreams


@pytest.fixture
def settings(redis_url: str, tmp_path: Path, line: str) -> Settings:
    return small_settings(line, redis={"url": redis_url}, snapshots={"directory": tmp_path})


def put(streams: LineStreams, **state: str) -> None:
    epoch, *_ = streams.acquire("station-1#ab", 0)
    streams.commit(epoch, state)


def only(told: Any) -> tuple[str, Any]:
    (found,) = told
    return found  # type: ignore[no-any-return]  # what the checks yield


# -- keys --------------------------------------------------------------------------------------------------------------


def test_a_line_that_is_new_or_waits_is_well(settings: Settings, client: redis.Redis, line: str) -> None:
    assert only(look_at_streams(settings, client)) == (OK, f"{line} (new: a worker makes its stream)")
    streams = LineStreams(client, line)
    streams.ensure_groups()
    put(streams, phase="scoring", applied_through="0-0")
    client.xadd(streams.images, {"batch": b""})
    outcome, text = only(look_at_streams(settings, client))
    assert (outcome, text) in {(OK, f"{line} (scoring, waiting: {lag})") for lag in ("1", "unknown, before Redis 7.0")}


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("images", "a stream"), ("scores", "a stream"), ("dead", "a stream"), ("review", "a stream"),
        ("control", "a stream"), ("replies", "a stream"), ("state", "a hash"), ("attempts", "a hash"),
        ("seen", "a hash"), ("seen-order", "a list"), ("lease", "a string"),
    ],
)  # fmt: skip
def test_a_key_of_another_type_is_named_with_what_is_expected(
    settings: Settings, client: redis.Redis, line: str, key: str, kind: str
) -> None:
    name = f"mhpc:{{{line}}}:{key}"
    client.zadd(name, {"something": 1})
    assert wrong_keys(LineStreams(client, line)) == [f"{name} is not {kind}"]
    _, error = only(look_at_streams(settings, client))
    assert isinstance(error, WorkerError)
    assert f"{name} is not {kind}: another program's" in str(error)


def test_a_stream_that_ends_before_what_was_learned_is_told_with_the_ways_out(
    settings: Settings, client: redis.Redis, line: str
) -> None:
    streams = LineStreams(client, line)
    streams.ensure_groups()
    client.xadd(streams.images, {"batch": b""}, id="5-0")
    put(streams, phase="scoring", applied_through="9-0")
    _, error = only(look_at_streams(settings, client))
    assert isinstance(error, WorkerError)
    for part in ("ends at 5-0, before 9-0", f"mhpc-worker control {line} resync", f"HDEL {streams.state_key} model"):
        assert part in str(error)


def test_what_a_keeper_told_of_its_line_is_told(settings: Settings, client: redis.Redis, line: str) -> None:
    put(LineStreams(client, line), problem="the line is stopped")
    _, error = only(look_at_streams(settings, client))
    assert str(error) == f"line {line}: the line is stopped"


def test_a_group_that_is_gone_and_entries_that_nobody_answers_are_notes(
    settings: Settings, client: redis.Redis, line: str
) -> None:
    streams = LineStreams(client, line)
    client.xgroup_create(streams.images, ANSWERING, id="0", mkstream=True)
    outcome, text = only(look_at_streams(settings, client))
    assert (outcome, text) == (NOTE, f"{line}: no group mhpc-learn; a worker makes it again at the beginning")
    streams.ensure_groups()
    client.xadd(streams.images, {"batch": b""}, id="1000-0")  # in 1970
    client.xreadgroup(ANSWERING, "somebody", {streams.images: ">"})
    outcome, text = only(look_at_streams(settings, client))
    assert (outcome, text.partition(", the oldest")[0]) == (NOTE, f"{line}: 1 entries are unanswered")


@pytest.mark.parametrize("ahead", [-3600.0, 3600.0])
def test_the_age_of_an_unanswered_entry_is_by_the_clock_of_redis(
    settings: Settings, client: redis.Redis, line: str, ahead: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time
    monkeypatch.setattr("time.time", lambda: real() + ahead)
    streams = LineStreams(client, line)
    streams.ensure_groups()
    seconds: int = client.time()[0]
    old = ahead < 0
    client.xadd(streams.images, {"batch": b""}, id=f"{seconds - 1000 * old}000-0")
    client.xreadgroup(ANSWERING, "somebody", {streams.images: ">"})
    assert only(look_at_streams(settings, client))[0] == (NOTE if old else OK)


def test_a_group_beyond_the_end_and_one_that_is_another_programs(
    settings: Settings, client: redis.Redis, line: str
) -> None:
    streams = LineStreams(client, line)
    streams.ensure_groups()
    client.xgroup_create(streams.images, b"pr\xfcfer", "0")
    assert only(look_at_streams(settings, client))[0] == OK
    client.xadd(streams.images, {"batch": b""}, id="5-0")
    client.xgroup_setid(streams.images, ANSWERING, "9-0")
    outcome, text = only(look_at_streams(settings, client))
    told = "the group mhpc lies at 9-0, beyond the stream's end at 5-0, and reads nothing new"
    assert (outcome, text) == (NOTE, f"{line}: {told}; a worker sets it back to the beginning when it starts")


@pytest.mark.parametrize("look", [look_at_streams, partial(look_at_versions, fingerprint="f")])
def test_a_state_that_cannot_be_read_is_its_lines_own_error(
    redis_url: str, tmp_path: Path, client: redis.Redis, line: str, look: Any
) -> None:
    names = [f"{line}-{letter}" for letter in "ab"]
    client.hset(f"mhpc:{{{names[0]}}}:state", mapping={"applied_through": b"\xff", "note": b"gepr\xfcft"})
    settings = small_settings(*names, redis={"url": redis_url}, snapshots={"directory": tmp_path})
    (_, error), (outcome, text) = look(settings, client)
    assert isinstance(error, WorkerError)
    assert f"mhpc:{{{names[0]}}}:state has applied_through" in str(error)
    assert (outcome, names[1] in str(text)) == (OK, True)


def test_a_line_that_fails_hides_no_other(redis_url: str, tmp_path: Path, client: redis.Redis, line: str) -> None:
    names = [f"{line}-{letter}" for letter in "abc"]
    client.set(f"mhpc:{{{names[1]}}}:dead", "something else")
    settings = small_settings(*names, redis={"url": redis_url}, snapshots={"directory": tmp_path})
    (_, error), (outcome, text) = look_at_streams(settings, client)
    assert isinstance(error, WorkerError)
    assert outcome == OK
    assert names[0] in str(text)
    assert names[2] in str(text)


# -- versions ----------------------------------------------------------------------------------------------------------


def write(settings: Settings, line: str, stem: str, fingerprint: str = "f", **about: Any) -> SnapshotStore:
    store = SnapshotStore(settings.snapshots.on_this_machine, line)
    store.write(stem, {"a": torch.zeros(1000)}, {"fingerprint": fingerprint, **about})
    return store


def test_versions_are_told_by_name(settings: Settings, client: redis.Redis, line: str) -> None:
    assert only(look_at_versions(settings, client, "f")) == (OK, f"{line} (none yet)")
    for seq in (1, 2):
        write(settings, line, stem_of(1, seq))
    put(LineStreams(client, line), model=stem_of(1, 2))
    assert only(look_at_versions(settings, client, "f")) == (OK, f"{line} ({stem_of(1, 2)})")


def test_a_file_in_the_place_of_the_folder_is_told(settings: Settings, client: redis.Redis, line: str) -> None:
    folder = settings.snapshots.on_this_machine / line
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("in the way")
    _, error = only(look_at_versions(settings, client, "f"))
    assert isinstance(error, StoreError)
    assert f"{folder} cannot be listed" in str(error)
    assert "a file stands where a folder belongs: move it away" in str(error)


def test_a_version_that_was_calibrated_otherwise_is_told(settings: Settings, client: redis.Redis, line: str) -> None:
    write(settings, line, stem_of(1, 1), top_k=settings.scoring.top_k)
    put(LineStreams(client, line), model=stem_of(1, 1))
    assert only(look_at_versions(settings, client, "f"))[0] == OK
    write(settings, line, stem_of(1, 1), top_k=7)
    _, error = only(look_at_versions(settings, client, "f"))
    assert isinstance(error, ModelError)
    told = f"was calibrated with scoring.top_k 7, not {settings.scoring.top_k}; restore that, or learn anew: "
    assert told in str(error)


def test_a_version_that_is_committed_and_not_there_is_told(settings: Settings, client: redis.Redis, line: str) -> None:
    put(LineStreams(client, line), model=stem_of(3, 1))
    _, error = only(look_at_versions(settings, client, "f"))
    assert isinstance(error, ModelError)
    assert "holds no snapshot; set snapshots.directory to where it lies" in str(error)
    write(settings, line, stem_of(2, 1))
    outcome, text = only(look_at_versions(settings, client, "f"))
    assert (outcome, text) == (NOTE, f"{line}: {stem_of(3, 1)} is committed, and not there; {stem_of(2, 1)} serves")


def test_a_version_that_is_not_used_is_told(settings: Settings, client: redis.Redis, line: str) -> None:
    streams = LineStreams(client, line)
    streams.ensure_groups()
    write(settings, line, stem_of(1, 1), applied_through="5-0")
    put(streams, model="", applied_through="0-0")
    client.xadd(streams.images, {"batch": b""}, id="5-0")
    told = f"{line}: {stem_of(1, 1)} is there, and not used: Redis says that nothing is committed"
    assert only(look_at_versions(settings, client, "f")) == (NOTE, told)
    write(settings, line, stem_of(1, 2), applied_through="9-0")
    _, error = only(look_at_versions(settings, client, "f"))
    assert isinstance(error, WorkerError)
    assert "ends at 5-0, before 9-0" in str(error)


def test_a_version_of_another_backbone_is_told(settings: Settings, client: redis.Redis, line: str) -> None:
    write(settings, line, stem_of(1, 1), fingerprint="another")
    _, error = only(look_at_versions(settings, client, "f"))
    assert isinstance(error, ModelError)
    assert "was learned with another backbone, weights, layers or input_shape" in str(error)


# -- room --------------------------------------------------------------------------------------------------------------


def with_room(settings: Settings, monkeypatch: pytest.MonkeyPatch, free: int) -> Settings:
    real = os.statvfs(settings.snapshots.directory)
    fields = list(real)
    fields[1], fields[4] = 1, free  # f_frsize, f_bavail
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(fields))
    return settings


def test_room_is_for_all_versions_that_before_the_last_change_and_the_one_that_is_written(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = 5 * largest_version(line_configs(settings)[0], 384)
    with_room(settings, monkeypatch, wanted)
    outcome, text = only(look_at_room(settings, 384))
    assert (outcome, text) == (OK, f"{wanted / 1e6:.0f} MB free, up to {wanted / 1e6:.0f} MB more are needed")
    with_room(settings, monkeypatch, wanted - 1)
    with pytest.raises(SnapshotError, match=r"free the disk, set snapshots\.directory to another, or lower"):
        only(look_at_room(settings, 384))


def test_what_lies_there_already_is_no_further_need(
    settings: Settings, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write(settings, line, stem_of(1, 1))
    size = store.files()[0].stat().st_size
    with_room(settings, monkeypatch, 4 * size)
    assert only(look_at_room(settings, None))[0] == OK
    with_room(settings, monkeypatch, 4 * size - 1)
    with pytest.raises(SnapshotError, match=r"1 lines with 4 versions each need up to"):
        only(look_at_room(settings, None))


@pytest.mark.parametrize(("bank_size", "most_learned"), [(60, 75), (1000, 2500)])
def test_no_version_is_larger_than_what_room_is_asked_for(
    settings: Settings, bank_size: int, most_learned: int
) -> None:
    config = line_configs(settings)[0].model_copy(update={"bank_size": bank_size})
    line = Line(config, 0.99, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    for _ in range(20 + bank_size // 20):
        line.learner.partial_fit(torch.randn(8, 36, 48, generator=generator))
        if len(bank := line.learner._memory_bank()) > 0.9 * most_learned:
            break
    assert len(bank) > 0.9 * most_learned
    far = 100 + torch.randn(bank_size // 2, 48, generator=generator)
    bank._append(far, bank.whitening(far), torch.full((len(far),), -1), pinned=True)
    tensors, metadata = line.state()
    store = SnapshotStore(settings.snapshots.on_this_machine, line.name)
    store.write(stem_of(1, 1), tensors, metadata)
    size, most = store.files()[0].stat().st_size, largest_version(config, 48)
    assert most / 4 < size <= most
