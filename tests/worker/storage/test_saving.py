import threading
import time
import uuid
from pathlib import Path

import pytest

from tests.worker.faulty import Faults
from tests.worker.helpers import eventually
from tests.worker.keepers import ENTRIES, MakeKeeper, add, extract, opened, pending
from worker.errors import SnapshotError
from worker.snapshots import SnapshotStore, packed, stem_of
from worker.storage.object_store import ObjectStore
from worker.storage.saving import Saving
from worker.streams.line_streams import LineStreams

OLD, NEW = stem_of(1, 1), stem_of(2, 1)


def test_an_object_store_takes_no_version_before_the_one_that_is_not_used_is_pinned(
    tmp_path: Path, faults: Faults
) -> None:
    store = ObjectStore(f"faulty://{uuid.uuid4().hex}/models", "press", tmp_path)
    store.put(OLD, packed({}, {"line": "press"}))
    saving = Saving(store, seconds=20)
    saving.keep(OLD)
    faults.away = True
    assert saving.begin(NEW, {}, {"line": "press"})
    with pytest.raises(SnapshotError, match=f"{NEW} waits until {OLD} is pinned: .*nobody answers"):
        saving.arrived(20)
    faults.away = False
    assert [(each.stem, each.pinned) for each in store.kept()] == [(OLD, False)]
    assert saving.begin(NEW, {}, {"line": "press"})
    assert saving.arrived(20) == NEW
    assert [(each.stem, each.pinned) for each in store.kept()] == [(OLD, True), (NEW, False)]


def test_one_that_somebody_took_away_holds_nothing_up(tmp_path: Path, faults: Faults) -> None:
    store = ObjectStore(f"faulty://{uuid.uuid4().hex}/models", "press", tmp_path)
    saving = Saving(store, seconds=20)
    saving.keep(OLD)
    assert saving.begin(NEW, {}, {"line": "press"})
    assert saving.arrived(20) == NEW


def test_what_a_version_took_is_told_from_its_begin_until_it_is_there(tmp_path: Path) -> None:
    saving = Saving(SnapshotStore(tmp_path / "press", "press"), seconds=20)
    assert saving.begin(OLD, {}, {"line": "press"}, since=time.monotonic() - 5)
    took = saving.took
    assert 5 <= took < 60
    time.sleep(0.05)
    assert saving.arrived(20) == OLD
    assert saving.took == took  # not when somebody looked


def test_between_two_commits_one_version_is_pinned(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path, "press")
    store.write(OLD, {}, {})
    saving, unused = Saving(store, seconds=20), OLD
    for epoch in (2, 3, 4):  # none of which is committed
        saving.keep(unused)
        saving.begin(unused := stem_of(epoch, 1), {}, {"line": "press"})
        assert saving.arrived(0) == unused
    assert [each.stem for each in store.kept() if each.pinned] == [OLD]
    saving.prune(1, unused, "")
    saving.keep(unused)
    saving.begin(stem_of(5, 1), {}, {"line": "press"})
    assert [each.stem for each in store.kept() if each.pinned] == [OLD, unused]


def test_a_version_that_goes_to_disk_aside_is_committed_once_it_is_there(
    make_keeper: MakeKeeper, streams: LineStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, may_go_on = SnapshotStore.put, threading.Event()

    def slow(store: SnapshotStore, stem: str, content: bytes) -> None:
        may_go_on.wait(60)
        put(store, stem, content)

    monkeypatch.setattr(SnapshotStore, "put", slow)
    add(streams, *ENTRIES[:3])
    keeper = opened(make_keeper())
    assert keeper.learn(extract, 2) == 2
    keeper.saving.aside = True
    keeper.snapshot()
    assert not keeper.snapshot_due
    assert keeper.learn(extract, 1) == 0  # what arrives is the line as it is
    assert pending(streams) == ["1-0", "2-0"]
    may_go_on.set()
    eventually(lambda: keeper.snapshot_due)
    keeper.snapshot()
    assert pending(streams) == []
    assert streams.state()["model"] == stem_of(1, 1)
    assert keeper.learn(extract, 1) == 1
