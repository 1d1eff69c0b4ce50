"""Reading many lines at once: what is wrong with one holds nobody up."""

import threading
import time
from collections.abc import Callable

import pytest
import redis

from tests.worker.streams.acting import add
from worker.streams.line_streams import ANSWERING, Entry, LineStreams
from worker.streams.reads import Read, backlogs, read_new, wait_and_read

ME = "station-1"


@pytest.fixture
def three(client: redis.Redis, line: str) -> list[LineStreams]:
    lines = [LineStreams(client, f"{line}-{i}") for i in range(3)]
    for streams in lines:
        streams.ensure_groups()
    return lines


def ids(found: dict[str, Read]) -> list[list[str] | None]:
    """The ids of each line's entries, in the lines' order; None for an error."""
    return [None if isinstance(read, Exception) else [entry.id for entry in read] for read in found.values()]


def group_gone(streams: LineStreams) -> None:
    streams.client.xgroup_destroy(streams.images, ANSWERING)


def key_gone(streams: LineStreams) -> None:
    streams.client.delete(streams.images)


def key_of_another_type(streams: LineStreams) -> None:
    key_gone(streams)
    streams.client.set(streams.images, "a text")


BROKEN = pytest.mark.parametrize("breaks", [group_gone, key_gone, key_of_another_type])


def test_each_line_gives_up_to_as_many_entries_as_are_wanted_of_it(
    client: redis.Redis, three: list[LineStreams]
) -> None:
    for streams in three:
        add(streams, "1-0", "2-0", "3-0")
    assert ids(read_new(client, dict(zip(three, (1, 2, 8), strict=True)), ME)) == [
        ["1-0"],
        ["1-0", "2-0"],
        ["1-0", "2-0", "3-0"],
    ]
    assert ids(read_new(client, dict.fromkeys(three, 8), ME)) == [["2-0", "3-0"], ["3-0"], []]
    assert read_new(client, {}, ME) == {}


def test_an_entrys_batch_comes_with_it(client: redis.Redis, three: list[LineStreams]) -> None:
    add(three[1], "1-0")
    assert read_new(client, dict.fromkeys(three, 8), ME)[three[1].line] == [Entry("1-0", b"of 1-0")]
    add(three[1], "2-0")
    assert wait_and_read(client, three, ME, 8, 10)[three[1].line] == [Entry("2-0", b"of 2-0")]


@BROKEN
def test_a_line_that_is_broken_withholds_nothing_of_the_others(
    client: redis.Redis, three: list[LineStreams], breaks: Callable[[LineStreams], None]
) -> None:
    for streams in three:
        add(streams, "1-0")
    breaks(three[1])
    assert ids(read_new(client, dict.fromkeys(three, 8), ME)) == [["1-0"], None, ["1-0"]]


@BROKEN
def test_who_waits_is_told_whose_the_error_is_and_loses_nothing_of_the_others(
    client: redis.Redis, three: list[LineStreams], breaks: Callable[[LineStreams], None]
) -> None:
    add(three[2], "1-0")
    breaks(three[1])
    found = wait_and_read(client, three, ME, 8, 10_000)
    assert ids(found) == [[], None, ["1-0"]]
    error = found[three[1].line]
    assert isinstance(error, redis.ResponseError)
    assert "NOGROUP" in str(error) or "WRONGTYPE" in str(error)


def test_waiting_ends_with_the_first_entry_or_in_time(client: redis.Redis, three: list[LineStreams]) -> None:
    begun = time.monotonic()
    assert ids(wait_and_read(client, three, ME, 8, 150)) == [[], [], []]
    assert 0.14 < time.monotonic() - begun < 15
    threading.Timer(0.1, add, (three[2], "7-0")).start()
    begun = time.monotonic()
    assert ids(wait_and_read(client, three, ME, 8, 60_000)) == [[], [], ["7-0"]]
    assert time.monotonic() - begun < 30


def test_the_backlogs_of_many_lines_are_those_of_each(client: redis.Redis, three: list[LineStreams]) -> None:
    for count, streams in enumerate(three):
        add(streams, *(f"{number + 1}-0" for number in range(count)))
        read_new(client, {streams: 1}, ME)
    assert backlogs(client, three) == {streams.line: streams.backlog(ANSWERING) for streams in three}
    assert [backlog.oldest_pending for backlog in backlogs(client, three).values()] == [None, "1-0", "1-0"]


@BROKEN
def test_a_line_that_is_broken_hides_no_other_ones_backlog(
    client: redis.Redis, three: list[LineStreams], breaks: Callable[[LineStreams], None]
) -> None:
    add(three[0], "1-0")
    read_new(client, {three[0]: 1}, ME)
    breaks(three[1])
    found = backlogs(client, three)
    assert (found[three[0].line].pending, found[three[2].line].pending) == (1, 0)
    assert three[1].line not in found or found[three[1].line].oldest_pending is None
