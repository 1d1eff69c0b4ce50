"""What comes while a version is on its way to an object store."""

import pytest

from tests.worker.commanding import look
from tests.worker.faulty import Faults
from tests.worker.helpers import eventually
from tests.worker.keepers import ENTRIES, add, extract, pending
from tests.worker.keeping.test_keeper_stores import Make, kept, learned, saved, settled
from tests.worker.keeping.test_keeper_stores import make as make  # a fixture
from tests.worker.keeping.test_keeper_stores import url as url  # a fixture
from worker.errors import FencedError
from worker.keeping.looking import Look
from worker.snapshots import stem_of
from worker.streams.control import send
from worker.streams.line_streams import LineStreams


def test_who_was_overtaken_while_its_version_was_on_its_way_commits_and_acknowledges_nothing(
    make: Make, streams: LineStreams, faults: Faults
) -> None:
    add(streams, *ENTRIES)
    keeper = kept(make())
    keeper.learn(extract, 2)
    faults.open.clear()
    keeper.snapshot()
    streams.client.delete(streams.lease)  # its time was up
    faults.open.set()
    successor = kept(make(), "station-2#b")
    with pytest.raises(FencedError):
        saved(keeper)
    assert successor.epoch == 2
    assert streams.state()["model"] in ("", stem_of(2, 1))
    assert len(pending(streams)) == 2


def test_a_command_is_answered_when_its_version_is_in_the_store_and_not_before(
    make: Make, streams: LineStreams, faults: Faults
) -> None:
    add(streams, *ENTRIES)
    keeper = learned(kept(make()))
    looks = Look(keeper)
    keeper.learn(extract, 2)
    faults.open.clear()
    keeper.snapshot()
    send(streams, "rate", {"rate": 0.02}, "ann")
    look(keeper, looks=looks)
    assert streams.client.xlen(streams.replies) == 0
    faults.open.set()
    saved(keeper)
    looks._at = 0.0
    look(keeper, looks=looks)
    settled(keeper)
    assert streams.client.xlen(streams.replies) == 1
    assert streams.state()["rate"] == "0.02"


def test_a_change_while_a_version_is_on_its_way_is_in_the_next_one(
    make: Make, streams: LineStreams, faults: Faults
) -> None:
    add(streams, *ENTRIES)
    keeper = kept(make())
    keeper.learn(extract, 2)
    faults.open.clear()
    keeper.snapshot()
    keeper.line.rate = 0.03
    keeper.save_change()
    assert not keeper.snapshot_due
    faults.open.set()
    saved(keeper)
    assert keeper.model == stem_of(1, 2)  # 1 was out of date, and 2 waited for it to end
    assert make().store.load(keeper.model).metadata["rate"] == 0.03


def test_who_ends_leaves_to_the_next_what_a_slow_store_did_not_take(
    make: Make, streams: LineStreams, faults: Faults
) -> None:
    add(streams, *ENTRIES)
    keeper = kept(make())
    keeper.learn(extract, 2)
    faults.open.clear()
    keeper.close()
    eventually(lambda: streams.client.get(streams.lease) is None)
    assert pending(streams) == ENTRIES[:2]
    faults.open.set()
    again = kept(make(), "station-2#b")
    assert again.line.applied_through in ("0-0", "2-0")
