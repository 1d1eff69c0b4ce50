import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
import torch

from tests.worker.calling import Call
from tests.worker.cli.test_control import keeping
from tests.worker.keepers import MakeKeeper, flip_a_bit
from worker.snapshots import SnapshotStore, stem_of
from worker.streams.line_streams import LineStreams

STEMS = [stem_of(1, seq) for seq in range(1, 5)]
METADATA = {"phase": "calibrating", "images_learned": 1000, "applied_through": "1795536061633-12"}


@pytest.fixture
def store(tmp_path: Path, line: str) -> SnapshotStore:
    """Four versions in the folder that `config` names."""
    store = SnapshotStore(tmp_path / "snapshots", line)
    for stem in STEMS:
        store.write(stem, {"mean": torch.zeros(3)}, METADATA)
    return store


def listed(call: Call, file: Path) -> list[dict[str, Any]]:
    ended = call("snapshots", "list", "--config", file, "--json")
    assert (ended.code, ended.err) == (0, "")
    return [json.loads(text) for text in ended.out.splitlines()]


def marked(call: Call, file: Path) -> dict[str, list[str]]:
    rows = listed(call, file)
    return {mark: [row["version"] for row in rows if row[mark]] for mark in ("committed", "pinned", "bad")}


# -- list --------------------------------------------------------------------------------------------------------------


def test_list_shows_what_each_version_is(
    call: Call, config: Any, client: redis.Redis, line: str, store: SnapshotStore
) -> None:
    file = config()
    client.hset(LineStreams(client, line).state_key, "model", STEMS[3])
    store.mark_bad(STEMS[1])
    store.pin(STEMS[0])
    assert marked(call, file) == {"committed": [STEMS[3]], "pinned": [STEMS[0]], "bad": [STEMS[1]]}
    rows = listed(call, file)
    assert [row["version"] for row in rows] == STEMS
    assert {name: rows[0][name] for name in METADATA} == METADATA
    assert rows[0]["bytes"] == (store.directory / f"{STEMS[0]}.safetensors").stat().st_size


def test_list_marks_the_version_that_a_rollback_takes(
    call: Call, config: Any, client: redis.Redis, line: str, store: SnapshotStore
) -> None:
    client.hset(LineStreams(client, line).state_key, "model", STEMS[3])
    store.write(STEMS[3], {"mean": torch.zeros(3)}, METADATA | {"before": STEMS[1]})
    assert [row["version"] for row in listed(call, config()) if row["before"]] == [STEMS[1]]
    assert "< for rollback" in call("snapshots", "list", "--config", config()).out


def test_list_fits_into_80_columns(
    call: Call, config: Any, client: redis.Redis, line: str, store: SnapshotStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    client.hset(LineStreams(client, line).state_key, "model", STEMS[3])
    store.pin(STEMS[3])
    (store.directory / f"{STEMS[2]}.safetensors").write_bytes(b"cut off")
    head, *rows, legend = call("snapshots", "list", "--config", config()).out.splitlines()
    assert head.split() == ["version", "size", "when", "phase", "learned", "applied", "through"]
    assert max(map(len, [head, *rows, legend])) <= 80
    assert [cell for cell in (STEMS[0], "calibrating", "1000", "1795536061633-12") if cell not in rows[0]] == []
    assert rows[2].split()[-3:] == ["-", "-", "-"]
    assert rows[3].startswith("*p ")
    assert legend.startswith("* committed")


def test_list_of_a_line_without_versions_says_where_it_looked(
    call: Call, config: Any, client: redis.Redis, line: str, tmp_path: Path
) -> None:
    file = config()
    assert listed(call, file) == []
    assert f"has no versions in {tmp_path / 'snapshots' / line}" in call("snapshots", "list", "--config", file).out
    client.hset(LineStreams(client, line).state_key, "model", STEMS[0])
    assert f"committed is {STEMS[0]}, which is not there" in call("snapshots", "list", "--config", file).out


# -- verify ------------------------------------------------------------------------------------------------------------


def test_verify_of_whole_versions_ends_well_and_needs_no_redis(call: Call, config: Any, store: SnapshotStore) -> None:
    ended = call("snapshots", "verify", "--config", config(url="redis://127.0.0.1:1/0"))
    assert (ended.code, ended.err) == (0, "")
    told = [f"ok  {stem}" for stem in STEMS]
    assert ended.out.splitlines() == [*told, f"4 versions in {store.directory}, each is whole"]


@pytest.mark.parametrize("spoil", [flip_a_bit, lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_verify_names_the_version_that_is_damaged_and_what_to_do(
    call: Call, config: Any, store: SnapshotStore, spoil: Callable[[Path], Any]
) -> None:
    spoil(store.directory / f"{STEMS[2]}.safetensors")
    ended = call("snapshots", "verify", "--config", config())
    assert ended.code == 1
    assert f"1 of 4 versions cannot be used: {STEMS[2]}; restore a copy" in ended.error
    assert f"mhpc-worker snapshots rollback {STEMS[3]} --line" in ended.error
    assert [text[:25] for text in ended.out.splitlines()] == [
        f"BAD {stem}" if stem == STEMS[2] else f"ok  {stem}" for stem in STEMS
    ]
    rows = [json.loads(text) for text in call("snapshots", "verify", "--config", config(), "--json").out.splitlines()]
    assert [row["version"] for row in rows if not row["ok"]] == [STEMS[2]]
    assert store.stems() == STEMS  # to look is to change nothing


def test_verify_where_nothing_is_whole_sends_nobody_to_a_version(call: Call, config: Any, store: SnapshotStore) -> None:
    for stem in STEMS:
        flip_a_bit(store.directory / f"{stem}.safetensors")
    error = call("snapshots", "verify", "--config", config()).error
    assert "finds no version to go on from" in error
    assert "rollback" not in error


def test_verify_of_nothing_is_no_success(call: Call, config: Any, store: SnapshotStore) -> None:
    for stem in STEMS:
        (store.directory / f"{stem}.safetensors").unlink()
    ended = call("snapshots", "verify", "--config", config())
    assert ended.code == 1
    assert "holds no version: set snapshots.directory to where they lie" in ended.error


# -- pin and unpin -----------------------------------------------------------------------------------------------------


def test_a_pinned_version_outlives_those_that_come_after_it(call: Call, config: Any, store: SnapshotStore) -> None:
    file = config()
    assert call("snapshots", "pin", STEMS[0], "--config", file).code == 0
    assert call("snapshots", "pin", STEMS[0], "--config", file).code == 0
    store.prune(2, current=STEMS[3])
    assert store.stems() == [STEMS[0], *STEMS[2:]]
    assert marked(call, file)["pinned"] == [STEMS[0]]
    assert call("snapshots", "unpin", STEMS[0], "--config", file).code == 0
    store.prune(2, current=STEMS[3])
    assert store.stems() == STEMS[2:]
    assert list(store.directory.glob("*.pin")) == []


@pytest.mark.parametrize("command", ["pin", "unpin"])
@pytest.mark.parametrize("version", [stem_of(9, 9), "../x", "newest"])
def test_a_version_that_is_not_there_is_neither_pinned_nor_unpinned(
    call: Call, config: Any, store: SnapshotStore, command: str, version: str
) -> None:
    (store.directory.parent / "x.pin").touch()
    store.pin(STEMS[1])
    ended = call("snapshots", command, version, "--config", config())
    assert ended.code == 1
    assert repr(version) in ended.error
    assert STEMS[1] in ended.error  # those there are
    assert (store.directory.parent / "x.pin").exists()


def test_a_version_that_was_set_aside_can_be_unpinned_but_not_pinned(
    call: Call, config: Any, store: SnapshotStore
) -> None:
    store.pin(STEMS[0])
    store.mark_bad(STEMS[0])
    assert call("snapshots", "unpin", STEMS[0], "--config", config()).code == 0
    assert call("snapshots", "pin", STEMS[0], "--config", config()).code == 1


def test_a_folder_that_cannot_be_written_says_so(call: Call, config: Any, store: SnapshotStore, tmp_path: Path) -> None:
    (store.directory / f"{STEMS[0]}.pin").mkdir()  # root may write anywhere
    ended = call("snapshots", "unpin", STEMS[0], "--config", config())
    assert ended.code == 1
    assert f"{STEMS[0]}.pin cannot be changed" in ended.error


# -- rollback ----------------------------------------------------------------------------------------------------------


def test_rollback_prints_the_keepers_answer_and_ends_by_it(call: Call, config: Any, make_keeper: MakeKeeper) -> None:
    with keeping(make_keeper) as keeper:
        file = config()
        keeper.save_change()
        ended = call("snapshots", "rollback", "absent", "--config", file)
        assert (ended.code, ended.out.partition(";")[0]) == (1, "version 'absent' is not there")
        version = keeper.model
        ended = call("snapshots", "rollback", version, "--config", file, "--json")
        assert (ended.code, json.loads(ended.out)["ok"]) == (0, True)
        assert f"has the content of {version}" in json.loads(ended.out)["text"]


def test_rollback_without_a_keeper_says_so(call: Call, config: Any, line: str) -> None:
    ended = call("snapshots", "rollback", STEMS[0], "--config", config(), "--timeout", "0.2")
    assert ended.code == 1
    assert "it has no keeper: start a worker" in ended.out
