from pathlib import Path

import pytest
import torch

from tests.worker.keeping import ENTRIES, MakeKeeper, add, assert_same, extract, learn_all, opened
from worker.errors import SnapshotError, StoreError
from worker.line import Line
from worker.snapshots import SnapshotStore, stem_of
from worker.streams.line_streams import FROM_START, LineStreams
from worker.versions import find_version, learned_in


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_newest_version_of_the_first_line_that_has_one_tells_what_was_learned_in(
    tmp_path: Path, precision: str
) -> None:
    stores = [SnapshotStore(tmp_path, name) for name in ("new", "of-before-it-was-told", "old", "other")]
    stores[1].write(stem_of(1, 1), {}, {})
    stores[2].write(stem_of(1, 1), {}, {"precision": "neither"})
    stores[2].write(stem_of(2, 1), {}, {"precision": precision})
    stores[3].write(stem_of(1, 1), {}, {"precision": "neither"})
    assert learned_in(stores, 1) is getattr(torch, precision)
    assert learned_in(stores[:2], 1) is None


def test_where_redis_says_that_nothing_is_committed_a_version_on_disk_is_kept_and_not_used(
    make_keeper: MakeKeeper, streams: LineStreams, unbroken: Line
) -> None:
    add(streams, *ENTRIES[:4])
    first = opened(make_keeper())
    assert streams.state()["model"] == ""
    first.learn(extract, 4)
    first.saving.begin(stem_of(1, 1), *first.line.state())  # and Redis is never told
    assert find_version(streams.line, first.store, {}) is not None  # as after a wipe
    standby = make_keeper()
    standby.follow()
    assert standby.model == ""
    second = opened(make_keeper(), holder="station-1#b")
    assert (second.line.applied_through, second.line.learner.images_seen_) == (FROM_START, 0)
    add(streams, *ENTRIES[4:])
    assert_same(learn_all(second).line, unbroken)
    assert [each.stem for each in second.store.kept() if each.pinned] == [stem_of(1, 1)]


def test_what_cannot_be_kept_is_not_begun_anew_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SnapshotStore(tmp_path, "press")
    store.write(stem_of(1, 1), {}, {})
    store.write(stem_of(1, 2), {}, {})
    damaged = Path(store.place) / f"{stem_of(1, 2)}.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])

    def full(*_: object) -> None:
        raise SnapshotError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(store, "pin", full)
        with pytest.raises(StoreError, match="no space left"):
            find_version("press", store, {"model": ""})
    assert find_version("press", store, {"model": ""}) is None
    assert [(each.stem, each.pinned) for each in store.kept() if not each.bad] == [(stem_of(1, 1), True)]
