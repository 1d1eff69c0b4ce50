import uuid
from pathlib import Path

import pytest

from tests.worker.faulty import Faults
from worker.errors import SnapshotError
from worker.object_store import ObjectStore
from worker.saving import Saving
from worker.snapshots import packed, stem_of

OLD, NEW = stem_of(1, 1), stem_of(2, 1)


def test_an_object_store_takes_no_version_before_the_one_that_is_not_used_is_pinned(
    tmp_path: Path, faults: Faults
) -> None:
    store = ObjectStore(f"faulty://{uuid.uuid4().hex}/models", "press", tmp_path)
    store.put(OLD, packed({}, {"line": "press"}))
    saving = Saving(store, seconds=20)
    saving.pinned_first = OLD
    faults.away = True
    assert saving.begin(NEW, {}, {"line": "press"})
    with pytest.raises(SnapshotError, match=f"{NEW} waits until {OLD} is pinned: .*nobody answers"):
        saving.arrived(20)
    faults.away = False
    assert (store.stems(), saving.pinned_first) == ([OLD], OLD)
    assert saving.begin(NEW, {}, {"line": "press"})
    assert saving.arrived(20) == NEW
    assert [(each.stem, each.pinned) for each in store.kept()] == [(OLD, True), (NEW, False)]


def test_one_that_somebody_took_away_holds_nothing_up(tmp_path: Path, faults: Faults) -> None:
    store = ObjectStore(f"faulty://{uuid.uuid4().hex}/models", "press", tmp_path)
    saving = Saving(store, seconds=20)
    saving.pinned_first = OLD
    assert saving.begin(NEW, {}, {"line": "press"})
    assert (saving.arrived(20), saving.pinned_first) == (NEW, "")
