"""Where a line's groups begin: in the stream that there is, whatever was remembered of one that is gone."""

import pytest
import redis

from tests.worker.streams.acting import add, answer, deliver, kept, pending, publish
from worker.errors import StateError
from worker.streams.ids import entry_before
from worker.streams.line_streams import ANSWERING, LEARNING, LineStreams
from worker.streams.state import read_state
from worker.streams.upkeep import unread_lost

AHEAD = "9999999999999-0"  # an id by a clock that was far ahead


@pytest.fixture
def ahead(streams: LineStreams, epoch: int) -> None:
    """All is answered, learned and trimmed, under ids of a clock that was ahead; the stream was deleted then."""
    add(streams, "1-0", AHEAD)
    for entry in deliver(streams):
        publish(streams, answer(entry, b"r"))
    streams.read_learning(epoch, 10)
    streams.acknowledge(epoch, ["1-0", AHEAD])
    assert streams.trim(epoch, [ANSWERING, LEARNING]) == AHEAD
    unread_lost(streams, epoch)
    streams.client.delete(streams.images)


@pytest.mark.parametrize("noticed", ["empty", "with entries"])
@pytest.mark.usefixtures("ahead")
def test_a_stream_that_was_begun_anew_by_a_slower_clock_is_read_whole_and_trimmed_as_it_is_answered(
    streams: LineStreams, epoch: int, noticed: str
) -> None:
    if noticed == "empty":
        streams.ensure_groups()
    entries = add(streams, "5-0", "6-0", "7-0")
    streams.ensure_groups()
    assert {"done_through", "gone"}.isdisjoint(streams.state())
    assert unread_lost(streams, epoch) == 0
    assert deliver(streams, count=2) == entries[:2]
    assert [entry.id for entry in streams.read_learning(epoch, 10)] == entries
    publish(streams, *[answer(entry, b"r") for entry in entries[:2]])
    assert streams.trim(epoch, [ANSWERING]) == "6-0"
    assert kept(streams) == ["7-0"]
    assert (deliver(streams), unread_lost(streams, epoch)) == (["7-0"], 0)


@pytest.mark.usefixtures("ahead")
def test_a_stream_that_has_grown_past_what_was_answered_of_another_is_read_whole(
    streams: LineStreams, epoch: int
) -> None:
    entries = add(streams, "5-0", "6-0", "10000000000000-0")
    streams.ensure_groups()
    assert deliver(streams) == entries
    assert [entry.id for entry in streams.read_learning(epoch, 10)] == entries


@pytest.mark.parametrize(("done", "again"), [(AHEAD, ["5-0", "6-0"]), ("5-0", ["6-0"]), ("", ["5-0", "6-0"])])
def test_a_group_beyond_the_end_goes_back_to_where_all_was_done(
    client: redis.Redis, line: str, done: str, again: list[str]
) -> None:
    streams = LineStreams(client, line)
    for group in (ANSWERING, LEARNING):
        client.xgroup_create(streams.images, group, id=AHEAD, mkstream=True)  # as releases before this made them
    epoch, *_ = streams.acquire("station-1#aa", 0)
    if done:
        client.hset(streams.state_key, "done_through", done)
    add(streams, "5-0", "6-0")
    client.xtrim(streams.images, minid=again[0], approximate=False)
    assert deliver(streams) == []
    streams.ensure_groups()
    assert deliver(streams) == again
    assert [entry.id for entry in streams.read_learning(epoch, 10)] == again
    streams.ensure_groups()
    assert deliver(streams) == []


def test_what_is_pending_in_a_group_beyond_the_end_stays_its_consumers(streams: LineStreams) -> None:
    add(streams, "5-0")
    deliver(streams)
    streams.client.xgroup_setid(streams.images, ANSWERING, AHEAD)
    add(streams, "6-0")
    streams.ensure_groups()
    assert deliver(streams) == ["5-0", "6-0"]
    assert pending(streams, ANSWERING) == ["5-0", "6-0"]
    assert publish(streams, answer("5-0", b"r"), answer("5-0", b"r")) == [True, False]


@pytest.mark.parametrize("remedy", ["the id before the first entry in ", "to 0-0 "])
def test_a_done_through_that_is_no_id_is_told_with_a_remedy_that_holds(
    streams: LineStreams, epoch: int, remedy: str
) -> None:
    add(streams, "1-0", "2-0", "3-0", "4-0")
    publish(streams, *[answer(entry, b"r") for entry in deliver(streams, count=2)])
    assert streams.trim(epoch, [ANSWERING]) == "2-0"
    streams.client.xgroup_destroy(streams.images, ANSWERING)
    streams.client.hset(streams.state_key, "done_through", "yesterday")
    with pytest.raises(redis.ResponseError, match='has done_through "yesterday", expected an entry id') as caught:
        streams.ensure_groups()
    with pytest.raises(StateError) as status:
        read_state(streams)
    for text in (str(caught.value), str(status.value)):
        assert streams.state_key in text
        assert "HSET it to the id before the first entry" in text
        assert remedy in text
    done = entry_before("3-0") if "before" in remedy else "0-0"
    streams.client.hset(streams.state_key, "done_through", done)
    streams.ensure_groups()
    assert (streams.state()["done_through"], deliver(streams)) == (done, ["3-0", "4-0"])
