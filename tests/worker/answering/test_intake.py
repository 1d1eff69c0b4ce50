import time
from pathlib import Path
from typing import Any

import pytest
import redis
from structlog.testing import capture_logs

from tests.worker.helpers import item, message
from tests.worker.station import Station
from worker.answering.intake import READ_ENTRIES, Intake, Read
from worker.engine import Engine
from worker.metrics import Metrics
from worker.settings import MIB, StreamSettings
from worker.streams.line_streams import ANSWERING, CLAIM_ENTRIES
from worker.streams.reads import read_new


@pytest.fixture
def station(client: redis.Redis, engine: Engine, tmp_path: Path, line: str) -> Station:
    return Station(client, engine, tmp_path, line)


@pytest.fixture
def several(client: redis.Redis, engine: Engine, tmp_path: Path, line: str) -> Station:
    return Station(client, engine, tmp_path, *(f"{line}-{number}" for number in range(3)))


def intake(idle: float = 0.001, **settings: int) -> Intake:
    return Intake(StreamSettings(claim_seconds=idle, **settings), "station-1", Metrics())


def leave_to(station: Station, line: str, consumer: str, count: int) -> list[str]:
    """Entries that a consumer was given and has not answered."""
    sent = [station.send(line, message(item(str(number)))) for number in range(count)]
    station.client.xreadgroup(ANSWERING, consumer, {station.streams(line).images: ">"})
    time.sleep(0.01)
    return sent


def read(reader: Intake, station: Station, **held: list[str]) -> Read:
    """With such entries in hand, by line."""
    in_hand = {name: dict.fromkeys(entries, 1) for name, entries in held.items()}
    return reader.read(station.client, station.keepers, in_hand, (), 0)


def taken(reader: Intake, station: Station) -> list[str]:
    found: list[str] = []
    while entries := read(reader, station).entries:
        for name, entry in entries:
            found.append(entry.id)
            station.client.xack(station.streams(name).images, ANSWERING, entry.id)
    return found


def test_what_a_dead_consumer_left_is_claimed_to_the_end_of_the_cursor(station: Station, line: str) -> None:
    sent = leave_to(station, line, "station-2", 250)  # three pages
    reader = intake()
    assert taken(reader, station) == sent
    assert station.pending(line) == 0


def test_what_a_consumer_has_had_for_a_moment_is_left_to_it(station: Station, line: str) -> None:
    leave_to(station, line, "station-2", 3)
    assert taken(intake(idle=60.0), station) == []
    assert station.pending(line) == 3


def test_what_was_claimed_is_tried_one_by_one(station: Station, line: str) -> None:
    leave_to(station, line, "station-2", 3)
    first = read(intake(), station)
    assert (len(first.entries), first.alone) == (1, True)


def test_what_is_in_hand_for_long_is_not_taken_over_from_this_consumer_itself(station: Station, line: str) -> None:
    sent = [station.send(line, message(item(str(number)))) for number in range(3)]
    reader = intake()
    assert [entry.id for _, entry in read(reader, station).entries] == sent
    left = leave_to(station, line, "station-2", 1)
    reader._claim_at = 0.0
    with capture_logs() as logs:
        read(reader, station, **{line: sent})
    assert [(entry["line"], entry["entries"]) for entry in logs] == [(line, 1)]
    (consumer,) = station.client.xpending_range(station.streams(line).images, ANSWERING, left[0], left[0], 1)
    assert consumer["consumer"] == b"station-1"
    reader = intake()
    with capture_logs() as logs:
        time.sleep(0.01)
        read(reader, station, **{line: sent + left})
    assert (logs, reader.recovering(line)) == ([], False)


def test_what_another_process_of_this_name_left_is_taken_over_once_what_is_in_hand_is_answered(
    station: Station, line: str
) -> None:
    """A busy line has something in hand at every look, and more of it than a page."""
    in_hand = leave_to(station, line, "station-1", CLAIM_ENTRIES + 1)
    left = leave_to(station, line, "station-1", 3)
    reader = intake()
    with capture_logs() as logs:
        assert read(reader, station, **{line: in_hand}).entries == []
    assert [(entry["line"], entry["entries"]) for entry in logs] == [(line, 3)]
    station.send(line, message(item("new")))
    assert read(reader, station, **{line: in_hand[:1]}).entries == []  # else it would never be done with
    station.client.xack(station.streams(line).images, ANSWERING, *in_hand)
    first = read(reader, station)
    assert ([entry.id for _, entry in first.entries], first.alone) == (left[:1], True)
    assert taken(reader, station)[:3] == left
    assert station.pending(line) == 0


def test_a_dead_consumers_entry_that_was_trimmed_ends_as_one_dead_letter(station: Station, line: str) -> None:
    sent = leave_to(station, line, "station-2", 3)
    station.client.xdel(station.streams(line).images, sent[1])
    station.answering.intake = Intake(StreamSettings(claim_seconds=0.001), "station-1", station.metrics)
    while station.turn():
        pass
    assert [result["entry"] for result in station.results(line)] == [sent[0], sent[2]]
    assert [(letter["entry"], letter["reason"]) for letter in station.letters(line)] == [(sent[1], "lost")]
    assert station.counted("entries_lost_total", line=line) == 1
    assert station.pending(line) == 0


def test_large_entries_are_read_a_few_at_a_time(station: Station, line: str) -> None:
    reader = intake(prefetch_bytes=4 * MIB)
    for _ in range(20):
        station.send(line, b"x" * (2 * MIB))
    counts = []
    while entries := read(reader, station).entries:
        counts.append(len(entries))
    assert sum(counts) == 20
    assert counts[0] == 4  # as of 1 MiB each, which is what is expected at first
    assert set(counts[1:]) == {2}


def test_small_ones_come_by_eight_again(station: Station, line: str) -> None:
    reader = intake(prefetch_bytes=4 * MIB)
    for size in [4 * MIB] * 2 + [10] * 200:
        station.send(line, b"x" * size)
    counts = []
    while entries := read(reader, station).entries:
        counts.append(len(entries))
    assert (sum(counts), max(counts[-5:])) == (202, READ_ENTRIES)


def test_so_many_entries_are_read_in_a_turn_that_a_batch_is_full_if_each_has_one_image(
    station: Station, line: str
) -> None:
    for number in range(30):
        station.send(line, message(item(str(number))))
    reader = Intake(StreamSettings(), "station-1", Metrics(), max_batch=24)
    assert [len(read(reader, station).entries) for _ in range(2)] == [24, 6]


def test_for_a_large_batch_more_are_read_at_once_but_for_a_turns_first(
    station: Station, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def counted(client: Any, wanted: Any, consumer: str) -> Any:
        asked.append(list(wanted.values()))
        return read_new(client, wanted, consumer)

    monkeypatch.setattr("worker.answering.intake.read_new", counted)
    for number in range(100):
        station.send(line, message(item(str(number))))
    reader = Intake(StreamSettings(), "station-1", Metrics(), max_batch=64)
    assert len(read(reader, station).entries) == 72
    assert asked == [[8], [32], [32]]


def test_the_bytes_of_a_turns_first_entries_count_for_those_to_follow(station: Station, line: str) -> None:
    for number in range(30):
        station.send(line, message(item(str(number), data=b"x" * MIB)))
    reader = Intake(StreamSettings(prefetch_bytes=10 * MIB), "station-1", Metrics(), max_batch=64)
    assert len(read(reader, station).entries) <= 10


def test_of_all_lines_one_entry_is_in_hand_that_is_tried_alone(several: Station) -> None:
    """What crashed may have been short of memory."""
    reader = intake(idle=60.0)
    left = {name: leave_to(several, name, "station-1", 2) for name in several.keepers}
    reader.rewind(several.keepers, alone=True)
    found = []
    while entries := read(reader, several).entries:
        ((name, entry),) = entries
        for _ in range(3):
            assert read(reader, several, **{name: [entry.id]}).entries == []
        found.append((name, entry.id))
        several.client.xack(several.streams(name).images, ANSWERING, entry.id)
    assert found == [(name, sent[number]) for number in range(2) for name, sent in left.items()]  # by turns


def test_a_line_that_left_nothing_waits_for_no_other_lines_entry_that_is_tried_alone(several: Station) -> None:
    first, *others = several.keepers
    reader = intake(idle=60.0)
    left = leave_to(several, first, "station-1", 1)
    reader.rewind(several.keepers, alone=True)
    assert [(name, entry.id) for name, entry in read(reader, several).entries] == [(first, left[0])]
    sent = [(name, several.send(name, message(item("new")))) for name in others]
    assert [(name, entry.id) for name, entry in read(reader, several, **{first: left}).entries] == sent


def test_a_line_that_is_refused_says_so_while_another_lines_entry_is_tried_alone(several: Station) -> None:
    first, *_, last = several.keepers
    reader = intake(idle=60.0)
    leave_to(several, first, "station-1", 1)
    several.client.set(several.streams(last).images, "in the way")
    reader.rewind(several.keepers, alone=True)
    found = read(reader, several)
    assert ([name for name, _ in found.entries], set(found.refused)) == ([first], {last})
