import time

import pytest
import redis

from tests.worker.streams.acting import add, answer, deliver, letters, pending, publish, results
from worker.streams.ids import FROM_START, entry_before, entry_key
from worker.streams.line_streams import ANSWERING, LEARNING, REVIEW_CAPS, DeadLetter, Entry, LineStreams

# -- ids ---------------------------------------------------------------------------------------------------------------


def test_ids_sort_as_redis_sorts_them() -> None:
    assert sorted(["10-0", "9-10", "9-9", "9", "0-0"], key=entry_key) == ["0-0", "9", "9-9", "9-10", "10-0"]


@pytest.mark.parametrize(
    ("entry", "before"),
    [
        ("5-3", "5-2"),
        ("5-1", "5-0"),
        ("5-0", f"4-{2**64 - 1}"),
        ("1-0", f"0-{2**64 - 1}"),
        ("0-1", "0-0"),
        ("0-0", "0-0"),
    ],
)
def test_the_id_before_an_id(entry: str, before: str) -> None:
    assert entry_before(entry) == before


# -- groups and state --------------------------------------------------------------------------------------------------


def test_a_lines_keys_lie_in_one_slot(client: redis.Redis, line: str) -> None:
    streams = LineStreams(client, line)
    keys = [streams.images, streams.scores, streams.dead, streams.state_key, streams.lease]
    assert keys == [f"mhpc:{{{line}}}:{name}" for name in ("images", "scores", "dead", "state", "lease")]


def test_groups_are_made_once_and_from_the_start(client: redis.Redis, line: str) -> None:
    streams = LineStreams(client, line)
    add(streams, "1-0", "2-0")
    streams.ensure_groups()
    assert deliver(streams, count=1) == ["1-0"]
    streams.ensure_groups()
    assert deliver(streams) == ["2-0"]


def test_a_line_that_is_new_has_no_state_and_no_last_entry(client: redis.Redis, line: str) -> None:
    streams = LineStreams(client, line)
    assert streams.state() == {}
    assert streams.last_id() == FROM_START
    streams.ensure_groups()
    assert streams.last_id() == FROM_START
    add(streams, "7-1")
    streams.client.xdel(streams.images, "7-1")
    assert streams.last_id() == "7-1"


def test_a_backlog_counts_what_is_pending(streams: LineStreams) -> None:
    assert streams.backlog(ANSWERING)[1:] == (0, None)
    add(streams, "1-0", "2-0", "3-0")
    deliver(streams, count=2)
    assert streams.backlog(ANSWERING).lag in {None, 1}  # servers before 7.0 cannot tell
    assert streams.backlog(ANSWERING)[1:] == (2, "1-0")
    assert streams.backlog("no such group") == (None, 0, None)


@pytest.mark.parametrize("group", [ANSWERING, LEARNING])
def test_a_group_that_was_destroyed_is_made_again_where_all_was_done(
    streams: LineStreams, epoch: int, group: str
) -> None:
    add(streams, "1-0", "2-0", "3-0")
    deliver(streams, count=1)
    publish(streams, answer("1-0", b"r"))
    streams.read_learning(epoch, 1)
    streams.acknowledge(epoch, ["1-0"])
    assert streams.trim(epoch, [ANSWERING, LEARNING]) == "1-0"
    add(streams, "4-0")
    streams.client.xgroup_destroy(streams.images, group)
    streams.ensure_groups()
    again = deliver(streams) if group == ANSWERING else [entry.id for entry in streams.read_learning(epoch, 10)]
    assert again == ["2-0", "3-0", "4-0"]


# -- the gate ----------------------------------------------------------------------------------------------------------


def test_the_gate_publishes_results_and_dead_letters_and_acknowledges(streams: LineStreams) -> None:
    add(streams, "1-0", "2-0")
    deliver(streams)
    letter = DeadLetter("b", "truncated", "cut off", b"\x00bytes")
    assert publish(streams, answer("1-0", b"a", b"c", dead=[letter]), answer("2-0", b"d")) == [True, True]
    assert results(streams) == [b"a", b"c", b"d"]
    assert letters(streams) == [
        {b"entry": b"1-0", b"id": b"b", b"reason": b"truncated", b"error": b"cut off", b"deliveries": b"1",
         b"payload": b"\x00bytes"}
    ]  # fmt: skip
    assert pending(streams, ANSWERING) == []


def test_the_gate_publishes_once_though_called_twice(streams: LineStreams) -> None:
    add(streams, "1-0")
    deliver(streams)
    letter = DeadLetter("b", "truncated", "", b"")
    twice = answer("1-0", b"a", dead=[letter])
    assert publish(streams, twice, twice) == [True, False]
    assert publish(streams, twice) == [False]
    assert (results(streams), len(letters(streams))) == ([b"a"], 1)


def test_the_gate_publishes_nothing_for_what_was_never_delivered(streams: LineStreams) -> None:
    add(streams, "1-0")
    assert publish(streams, answer("1-0", b"a"), answer("9-0", b"b")) == [False, False]
    assert results(streams) == []


def test_the_gate_answers_what_another_consumer_was_given(streams: LineStreams) -> None:
    add(streams, "1-0")
    deliver(streams, "station-2")
    assert publish(streams, answer("1-0", b"a")) == [True]
    assert pending(streams, ANSWERING) == []


@pytest.mark.parametrize("broken", ["scores", "dead"])
def test_an_answer_that_cannot_be_written_leaves_the_entry_pending_and_publishes_nothing(
    streams: LineStreams, broken: str
) -> None:
    add(streams, "1-0")
    deliver(streams)
    key = getattr(streams, broken)
    streams.client.set(key, "of another type")
    both = answer("1-0", b"a", dead=[DeadLetter("b", "truncated", "", b"")])
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        publish(streams, both)
    assert pending(streams, ANSWERING) == ["1-0"]
    other = streams.dead if broken == "scores" else streams.scores
    assert streams.client.exists(other) == 0
    streams.client.delete(key)
    assert publish(streams, both) == [True]
    assert (results(streams), len(letters(streams))) == ([b"a"], 1)


def test_dead_letters_say_how_often_an_entry_was_delivered(streams: LineStreams) -> None:
    add(streams, "1-0")
    deliver(streams)
    streams.own_pending("station-1", 10)
    streams.own_pending("station-1", 10)
    publish(streams, answer("1-0", dead=[DeadLetter("b", "truncated", "", b"")]))
    assert letters(streams)[0][b"deliveries"] == b"3"


def test_results_and_dead_letters_are_capped(streams: LineStreams) -> None:
    entries = add(streams, *[f"{i}-0" for i in range(1, 61)])
    deliver(streams)
    dead = [DeadLetter("b", "truncated", "", b"")] * 10
    for entry in entries:
        streams.publish(
            [answer(entry, *[b"%d" % i for i in range(10)], dead=dead)], scores_max=150, dead_max=50, review=REVIEW_CAPS
        )
    block = 100  # Redis trims whole blocks of its streams
    assert 150 <= streams.client.xlen(streams.scores) <= 150 + block
    assert 50 <= streams.client.xlen(streams.dead) <= 50 + block
    assert results(streams)[-1] == b"9"


def test_a_batch_of_hundreds_of_large_results_passes_the_gate_whole(streams: LineStreams) -> None:
    add(streams, "1-0")
    deliver(streams)
    letter = DeadLetter("b", "truncated", "", bytes(10_000))
    assert publish(streams, answer("1-0", *[bytes(10_000)] * 256, dead=[letter] * 256)) == [True]
    assert (len(results(streams)), len(letters(streams))) == (256, 256)


# -- reading to answer -------------------------------------------------------------------------------------------------


def test_what_was_delivered_and_not_answered_comes_again_to_its_consumer_alone(streams: LineStreams) -> None:
    add(streams, "1-0", "2-0", "3-0")
    deliver(streams)
    publish(streams, answer("2-0", b"r"))
    assert streams.own_pending("station-1", 10) == [Entry("1-0", b"of 1-0"), Entry("3-0", b"of 3-0")]
    assert streams.own_pending("station-1", 1) == [Entry("1-0", b"of 1-0")]
    assert streams.own_pending("station-2", 10) == []
    assert deliver(streams) == []


def test_a_claim_takes_what_others_hold_and_leaves_alone_what_the_consumer_has(streams: LineStreams) -> None:
    entries = add(streams, *[f"{number}-0" for number in range(1, 451)])
    holders = ["station-1", "station-2", "station-1", "station-3", "station-1"]
    for holder in [holders[number % 5] for number in range(45)]:  # in turn, over several pages
        deliver(streams, holder, 10)
    found = streams.client.xpending_range(streams.images, ANSWERING, "-", "+", 1000)
    own = {each["message_id"].decode() for each in found if each["consumer"] == b"station-1"}
    time.sleep(0.1)
    assert streams.claim("station-1", 60_000, 100) == (0, 0)
    assert streams.claim("station-1", 50, 100) == (180, 0)
    found = streams.client.xpending_range(streams.images, ANSWERING, "-", "+", 1000)
    assert [each["message_id"].decode() for each in found] == entries
    assert {each["consumer"] for each in found} == {b"station-1"}
    fresh = [each["time_since_delivered"] for each in found if each["message_id"].decode() not in own]
    assert max(fresh) < min(each["time_since_delivered"] for each in found if each["message_id"].decode() in own)


def test_a_pending_entry_that_was_trimmed_comes_back_as_lost(streams: LineStreams, epoch: int) -> None:
    add(streams, "1-0", "2-0")
    deliver(streams)
    streams.read_learning(epoch, 10)
    streams.client.xtrim(streams.images, minid="2-0", approximate=False)
    expected = [Entry("1-0", None, lost=True), Entry("2-0", b"of 2-0")]
    assert streams.own_pending("station-1", 10) == expected
    assert streams.read_learning(epoch, 10, FROM_START) == expected
    assert publish(streams, answer("1-0", dead=[DeadLetter("", "lost", "", b"")])) == [True]


def test_an_entry_without_the_field_is_not_lost(streams: LineStreams) -> None:
    streams.client.xadd(streams.images, {"picture": "x"}, id="1-0")
    deliver(streams)
    assert streams.own_pending("station-1", 10) == [Entry("1-0", None, lost=False)]
