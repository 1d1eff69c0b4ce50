from typing import Any

import pytest
import redis

from tests.worker.helpers import eventually
from worker.errors import FencedError
from worker.streams.line_streams import (
    ANSWERING,
    FROM_START,
    LEARNING,
    Answer,
    DeadLetter,
    Entry,
    LineStreams,
    entry_before,
    entry_key,
    read_answering,
)

HOLDER = "station-1#aa"


@pytest.fixture
def streams(client: redis.Redis, line: str) -> LineStreams:
    streams = LineStreams(client, line)
    streams.ensure_groups()
    return streams


@pytest.fixture
def epoch(streams: LineStreams) -> int:
    return streams.acquire(HOLDER, 0)[0]


def add(streams: LineStreams, *entries: str) -> list[str]:
    for entry in entries:
        streams.client.xadd(streams.images, {"batch": f"of {entry}"}, id=entry)
    return list(entries)


def deliver(streams: LineStreams, consumer: str = "station-1", count: int = 100) -> list[str]:
    reply = read_answering(streams.client, [streams], consumer, count, None)
    return [entry.id for _, entries in reply for entry in entries]


def answer(entry: str, *results: bytes, dead: list[DeadLetter] | None = None) -> Answer:
    return Answer(entry, list(results), dead or [])


def publish(streams: LineStreams, *answers: Answer) -> list[bool]:
    return streams.publish(answers, scores_max=1000, dead_max=1000)


def results(streams: LineStreams) -> list[bytes]:
    return [fields[b"result"] for _, fields in streams.client.xrange(streams.scores)]


def letters(streams: LineStreams) -> list[dict[bytes, bytes]]:
    return [fields for _, fields in streams.client.xrange(streams.dead)]


def pending(streams: LineStreams, group: str) -> list[str]:
    return [
        item["message_id"].decode() for item in streams.client.xpending_range(streams.images, group, "-", "+", 1000)
    ]


def kept(streams: LineStreams) -> list[str]:
    return [entry.decode() for entry, _ in streams.client.xrange(streams.images)]


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
        streams.publish([answer(entry, *[b"%d" % i for i in range(10)], dead=dead)], scores_max=150, dead_max=50)
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


def test_one_call_reads_all_lines(client: redis.Redis, line: str) -> None:
    both = [LineStreams(client, f"{line}-{i}") for i in range(2)]
    for streams in both:
        streams.ensure_groups()
    assert read_answering(client, both, "station-1", 10, None) == []
    add(both[0], "1-0", "2-0")
    add(both[1], "5-0")
    reply = read_answering(client, both, "station-1", 10, block_ms=10)
    assert {name: [entry.id for entry in entries] for name, entries in reply} == {
        f"{line}-0": ["1-0", "2-0"],
        f"{line}-1": ["5-0"],
    }


# -- the lease ---------------------------------------------------------------------------------------------------------


def test_a_lease_is_held_by_one_and_each_epoch_is_higher(streams: LineStreams) -> None:
    assert streams.acquire("a#1", 0) == (1, "")
    assert streams.acquire("b#1", 0) == (0, "a#1")
    assert streams.state()["epoch"] == "1"
    streams.release(1, "a#1")
    assert eventually(lambda: streams.acquire("b#1", 0)[0]) == 2


def test_a_new_epoch_is_above_the_one_on_disk(streams: LineStreams) -> None:
    assert streams.acquire("a#1", 41) == (42, "")
    assert streams.acquire("a#1", 7) == (43, "")


def test_only_the_own_names_earlier_lease_is_taken_over(streams: LineStreams) -> None:
    streams.acquire("station-1#old", 0)
    for name in ("station", "station-11", "station-1#old", "", "station."):
        assert streams.acquire("new#1", 0, take_over=name) == (0, "station-1#old")
    assert streams.acquire("station-1#new", 0) == (0, "station-1#old")
    assert streams.acquire("station-1#new", 0, take_over="station-1") == (2, "")


def test_a_name_with_the_separator_in_it_is_another_name(streams: LineStreams) -> None:
    streams.acquire("a#b#1", 0)
    assert streams.acquire("a#2", 0, take_over="a") == (0, "a#b#1")
    assert streams.acquire("a#b#2", 0, take_over="a#b") == (2, "")


def test_a_lease_that_is_not_renewed_ends_and_a_renewed_one_does_not(streams: LineStreams, epoch: int) -> None:
    streams.client.pexpire(streams.lease, 50)
    streams.renew(epoch, HOLDER)
    assert streams.client.pttl(streams.lease) > 10_000
    streams.client.pexpire(streams.lease, 1)
    assert eventually(lambda: streams.acquire("other#1", 0)[0]) == epoch + 1
    with pytest.raises(FencedError, match="no longer"):
        streams.renew(epoch, HOLDER)


def test_renewing_does_not_take_another_holders_lease(streams: LineStreams, epoch: int) -> None:
    streams.client.set(streams.lease, "other#1")
    with pytest.raises(FencedError, match="other#1"):
        streams.renew(epoch, HOLDER)


def test_releasing_leaves_another_holders_lease_alone(streams: LineStreams, epoch: int) -> None:
    streams.client.set(streams.lease, "other#1")
    streams.release(epoch, HOLDER)
    assert streams.client.get(streams.lease) == b"other#1"
    assert streams.client.pttl(streams.lease) == -1


def test_who_lost_the_lease_reads_commits_acknowledges_and_trims_nothing(streams: LineStreams, epoch: int) -> None:
    add(streams, "1-0", "2-0")
    deliver(streams)
    publish(streams, answer("1-0", b"r"), answer("2-0", b"r"))
    streams.read_learning(epoch, 1)
    before = {**streams.state(), "epoch": str(epoch + 1)}
    streams.acquire("station-1#new", 0, take_over="station-1")
    for attempt in (
        lambda: streams.read_learning(epoch, 10),
        lambda: streams.read_learning(epoch, 10, FROM_START),
        lambda: streams.commit(epoch, {"phase": "scoring", "model": "x"}),
        lambda: streams.acknowledge(epoch, ["1-0"]),
        lambda: streams.trim(epoch, [ANSWERING]),
        lambda: streams.renew(epoch, HOLDER),
        lambda: streams.release(epoch, HOLDER),
    ):
        with pytest.raises(FencedError, match=streams.line):
            attempt()
    assert streams.state() == before
    assert pending(streams, LEARNING) == ["1-0"]
    assert kept(streams) == ["1-0", "2-0"]
    assert [entry.id for entry in streams.read_learning(epoch + 1, 10)] == ["2-0"]


def test_a_keeper_of_a_wiped_server_is_fenced(streams: LineStreams, epoch: int) -> None:
    streams.client.delete(streams.state_key)
    with pytest.raises(FencedError):
        streams.read_learning(epoch, 10)


# -- reading to learn --------------------------------------------------------------------------------------------------


def test_a_commit_sets_all_its_fields_and_leaves_the_others(streams: LineStreams, epoch: int) -> None:
    streams.commit(epoch, {"phase": "learning", "model": "m1", "threshold": ""})
    streams.commit(epoch, {"phase": "scoring", "threshold": "0.1"})
    assert streams.state() == {"epoch": "1", "phase": "scoring", "model": "m1", "threshold": "0.1"}


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


def test_trimming_stops_right_before_the_first_entry_of_a_millisecond(streams: LineStreams, epoch: int) -> None:
    add(streams, "1-5", "2-0")
    deliver(streams)
    publish(streams, answer("1-5", b"r"))
    assert streams.trim(epoch, [ANSWERING]) == f"1-{2**64 - 1}"
    assert kept(streams) == ["2-0"]
    streams.client.xgroup_destroy(streams.images, ANSWERING)
    streams.ensure_groups()
    assert deliver(streams) == ["2-0"]
