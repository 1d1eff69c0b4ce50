from typing import Any

import pytest
import redis

from tests.worker.helpers import eventually
from tests.worker.streams.acting import HOLDER, add, answer, deliver, kept, pending, publish
from worker.errors import FencedError
from worker.streams.ids import FROM_START, LAST, entry_before
from worker.streams.line_streams import ANSWERING, LEARNING, Entry, LineStreams

# -- the lease ---------------------------------------------------------------------------------------------------------


def test_a_lease_is_held_by_one_and_each_epoch_is_higher(streams: LineStreams) -> None:
    assert streams.acquire("a#1", 0)[:2] == (1, "")
    assert streams.acquire("b#1", 0)[:2] == (0, "a#1")
    assert streams.state()["epoch"] == "1"
    streams.release(1)
    assert streams.client.pttl(streams.lease) <= 1  # milliseconds
    assert eventually(lambda: streams.acquire("b#1", 0)[0]) == 2


def test_a_new_epoch_is_above_the_one_on_disk(streams: LineStreams) -> None:
    assert streams.acquire("a#1", 41)[:2] == (42, "")
    assert streams.acquire("a#1", 7)[:2] == (43, "")


def test_only_the_own_names_earlier_lease_is_taken_over(streams: LineStreams) -> None:
    streams.acquire("station-1#old", 0)
    for name in ("station", "station-11", "station-1#old", "", "station."):
        assert streams.acquire("new#1", 0, take_over=name)[:2] == (0, "station-1#old")
    assert streams.acquire("station-1#new", 0)[:2] == (0, "station-1#old")
    assert streams.acquire("station-1#new", 0, take_over="station-1")[:2] == (2, "")


def test_a_name_with_the_separator_in_it_is_another_name(streams: LineStreams) -> None:
    streams.acquire("a#b#1", 0)
    assert streams.acquire("a#2", 0, take_over="a")[:2] == (0, "a#b#1")
    assert streams.acquire("a#b#2", 0, take_over="a#b")[:2] == (2, "")


def test_a_lease_that_is_not_renewed_ends_and_a_renewed_one_does_not(streams: LineStreams, epoch: int) -> None:
    streams.client.pexpire(streams.lease, 50)
    streams.renew(epoch)
    assert streams.client.pttl(streams.lease) > 10_000
    streams.client.pexpire(streams.lease, 1)
    assert eventually(lambda: streams.acquire("other#1", 0)[0]) == epoch + 1
    with pytest.raises(FencedError, match="no longer"):
        streams.renew(epoch)


def test_renewing_does_not_take_another_holders_lease(streams: LineStreams, epoch: int) -> None:
    streams.client.set(streams.lease, "other#1")
    with pytest.raises(FencedError, match="other#1"):
        streams.renew(epoch)


def test_releasing_leaves_another_holders_lease_alone(streams: LineStreams, epoch: int) -> None:
    streams.client.set(streams.lease, "other#1")
    streams.release(epoch)
    assert streams.client.get(streams.lease) == b"other#1"
    assert streams.client.pttl(streams.lease) == -1


def test_who_lost_the_lease_reads_commits_acknowledges_and_trims_nothing(streams: LineStreams, epoch: int) -> None:
    add(streams, "1-0", "2-0")
    deliver(streams)
    publish(streams, answer("1-0", b"r"), answer("2-0", b"r"))
    streams.read_learning(epoch, 1)
    before = {**streams.state(), "epoch": str(epoch + 1), "holder": "station-1#new"}
    streams.acquire("station-1#new", 0, take_over="station-1")
    for attempt in (
        lambda: streams.read_learning(epoch, 10),
        lambda: streams.read_learning(epoch, 10, FROM_START),
        lambda: streams.commit(epoch, {"phase": "scoring", "model": "x"}),
        lambda: streams.acknowledge(epoch, ["1-0"]),
        lambda: streams.trim(epoch, [ANSWERING]),
        lambda: streams.renew(epoch),
        lambda: streams.release(epoch),
    ):
        with pytest.raises(FencedError, match=streams.line):
            attempt()
    assert streams.state() == before
    assert pending(streams, LEARNING) == ["1-0"]
    assert kept(streams) == ["1-0", "2-0"]
    assert [entry.id for entry in streams.read_learning(epoch + 1, 10)] == ["2-0"]


def test_an_epoch_that_is_given_twice_is_the_last_holders_alone(streams: LineStreams, epoch: int) -> None:
    """By a replica, say, that was promoted without the first time."""
    add(streams, "1-0")
    streams.client.hset(streams.state_key, "epoch", epoch - 1)
    streams.client.delete(streams.lease)
    other = LineStreams(streams.client, streams.line)
    assert other.acquire("station-2#b", 0)[:2] == (epoch, "")
    for attempt in (
        lambda: streams.read_learning(epoch, 10),
        lambda: streams.commit(epoch, {"phase": "scoring", "model": "x"}),
        lambda: streams.acknowledge(epoch, ["1-0"]),
        lambda: streams.trim(epoch, [ANSWERING]),
        lambda: streams.release(epoch),
    ):
        with pytest.raises(FencedError, match=f"{streams.line}: FENCED epoch {epoch} was given to station-2#b, too"):
            attempt()
    assert [entry.id for entry in other.read_learning(epoch, 10)] == ["1-0"]


def test_a_keeper_of_a_wiped_server_is_fenced(streams: LineStreams, epoch: int) -> None:
    streams.client.delete(streams.state_key)
    with pytest.raises(FencedError):
        streams.read_learning(epoch, 10)


# -- reading to learn --------------------------------------------------------------------------------------------------


def test_a_commit_sets_all_its_fields_and_leaves_the_others(streams: LineStreams, epoch: int) -> None:
    streams.commit(epoch, {"phase": "learning", "model": "m1", "threshold": ""})
    streams.commit(epoch, {"phase": "scoring", "threshold": "0.1"})
    told = {"phase": "scoring", "model": "m1", "threshold": "0.1"}
    assert streams.state() == {"epoch": "1", "holder": HOLDER, **told}


def test_the_learner_pages_through_its_history_then_reads_on(streams: LineStreams, epoch: int) -> None:
    entries = add(streams, *[f"{i}-0" for i in range(1, 8)])
    assert [entry.id for entry in streams.read_learning(epoch, 5)] == entries[:5]
    streams.acknowledge(epoch, [entries[1]])
    pages, after = [], FROM_START
    while page := streams.read_learning(epoch, 2, after):
        pages.append([entry.id for entry in page])
        after = page[-1].id
    assert pages == [["1-0", "3-0"], ["4-0", "5-0"]]
    assert streams.read_learning(epoch, 1) == [Entry("6-0", b"of 6-0")]


def test_learning_and_answering_read_each_for_itself(streams: LineStreams, epoch: int) -> None:
    entries = add(streams, "1-0", "2-0")
    assert [entry.id for entry in streams.read_learning(epoch, 10)] == entries
    assert deliver(streams) == entries
    streams.acknowledge(epoch, entries)
    assert (pending(streams, LEARNING), pending(streams, ANSWERING)) == ([], entries)


def test_thousands_are_acknowledged_at_once(streams: LineStreams, epoch: int) -> None:
    pipe: Any = streams.client.pipeline()
    for i in range(1, 2502):
        pipe.xadd(streams.images, {"batch": b""}, id=f"{i}-0")
    pipe.execute()
    entries = [entry.id for entry in streams.read_learning(epoch, 3000)]
    assert len(entries) == 2501
    streams.acknowledge(epoch, entries)
    assert streams.backlog(LEARNING).pending == 0
    streams.acknowledge(epoch, [])


# -- trimming ----------------------------------------------------------------------------------------------------------


def test_trimming_drops_what_both_groups_are_done_with(streams: LineStreams, epoch: int) -> None:
    entries = add(streams, "1-0", "2-0", "3-0")
    deliver(streams)
    publish(streams, *[answer(entry, b"r") for entry in entries])
    streams.read_learning(epoch, 2)
    streams.acknowledge(epoch, ["1-0", "2-0"])
    assert streams.trim(epoch, [ANSWERING, LEARNING]) == "2-0"
    assert kept(streams) == ["3-0"]
    assert streams.state()["done_through"] == "2-0"
    assert streams.trim(epoch, [ANSWERING]) == "3-0"
    assert kept(streams) == []


@pytest.mark.parametrize("slow", [ANSWERING, LEARNING])
def test_trimming_never_passes_what_one_group_has_not_read(streams: LineStreams, epoch: int, slow: str) -> None:
    entries = add(streams, "1-0", "2-0")
    if slow == LEARNING:
        deliver(streams)
        publish(streams, *[answer(entry, b"r") for entry in entries])
    else:
        streams.read_learning(epoch, 10)
        streams.acknowledge(epoch, entries)
    assert streams.trim(epoch, [ANSWERING, LEARNING]) == FROM_START
    assert kept(streams) == entries


@pytest.mark.parametrize("slow", [ANSWERING, LEARNING])
def test_trimming_never_passes_what_is_pending_in_one_group(streams: LineStreams, epoch: int, slow: str) -> None:
    entries = add(streams, "1-0", "2-0", "2-1", "3-0")
    done = [entry for entry in entries if entry != "2-1"]
    deliver(streams)
    streams.read_learning(epoch, 10)
    publish(streams, *[answer(entry, b"r") for entry in (done if slow == ANSWERING else entries)])
    streams.acknowledge(epoch, done if slow == LEARNING else entries)
    assert streams.trim(epoch, [ANSWERING, LEARNING]) == "2-0"
    assert kept(streams) == ["2-1", "3-0"]
    assert pending(streams, slow) == ["2-1"]


def test_trimming_waits_for_a_group_that_is_missing(streams: LineStreams, epoch: int) -> None:
    add(streams, "1-0")
    deliver(streams)
    publish(streams, answer("1-0", b"r"))
    streams.client.xgroup_destroy(streams.images, LEARNING)
    assert streams.trim(epoch, [ANSWERING, LEARNING]) == FROM_START
    assert kept(streams) == ["1-0"]


@pytest.mark.parametrize("applied", [FROM_START, "9-0"])
def test_trimming_refuses_a_stream_that_ends_before_what_was_answered_or_learned(
    streams: LineStreams, epoch: int, applied: str
) -> None:
    add(streams, "1-0", "2-0")
    deliver(streams)
    publish(streams, answer("1-0", b"r"), answer("2-0", b"r"))
    if applied == FROM_START:
        streams.client.xgroup_setid(streams.images, ANSWERING, "9-0")
    streams.commit(epoch, {"applied_through": applied})
    with pytest.raises(redis.ResponseError, match="ends at 2-0, before 9-0 that was read"):
        streams.trim(epoch, [ANSWERING])
    assert kept(streams) == ["1-0", "2-0"]
    assert "done_through" not in streams.state()


def test_an_empty_stream_in_place_of_what_was_learned_is_trimmed(streams: LineStreams, epoch: int) -> None:
    streams.commit(epoch, {"applied_through": "9-0"})
    assert streams.trim(epoch, [ANSWERING]) == FROM_START


def test_trimming_is_not_kept_from_it_by_a_group_of_another_program(streams: LineStreams, epoch: int) -> None:
    streams.client.xgroup_create(streams.images, b"pr\xfcfer", "0")
    add(streams, "1-0")
    deliver(streams)
    publish(streams, answer("1-0", b"r"))
    assert streams.trim(epoch, [ANSWERING]) == "1-0"


def test_who_holds_the_lease_under_a_name_that_is_no_text_is_told(streams: LineStreams) -> None:
    streams.client.set(streams.lease, b"pr\xfcfer")
    assert streams.acquire("station-1#aa", 0)[:2] == (0, "pr\ufffdfer")


def test_trimming_stops_right_before_the_first_entry_of_a_millisecond(streams: LineStreams, epoch: int) -> None:
    add(streams, "1-5", "2-0")
    deliver(streams)
    publish(streams, answer("1-5", b"r"))
    assert streams.trim(epoch, [ANSWERING]) == f"1-{2**64 - 1}"
    assert kept(streams) == ["2-0"]
    streams.client.xgroup_destroy(streams.images, ANSWERING)
    streams.ensure_groups()
    assert deliver(streams) == ["2-0"]


def test_an_entry_of_the_last_id_there_is_stays_and_all_before_it_is_trimmed(streams: LineStreams, epoch: int) -> None:
    entries = add(streams, "1-0", entry_before(LAST), LAST)
    deliver(streams)
    publish(streams, *[answer(entry, b"r") for entry in entries])
    for _ in range(2):
        assert streams.trim(epoch, [ANSWERING]) == entry_before(LAST)
        assert kept(streams) == [LAST]
        streams.ensure_groups()
    assert deliver(streams) == []
