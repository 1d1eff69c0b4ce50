import time
from pathlib import Path
from typing import Any

import pytest
import redis
from structlog.testing import capture_logs

from tests.worker.helpers import item, message
from tests.worker.station import Station
from worker.engine import Engine
from worker.intake import READ_ENTRIES, Intake, Read
from worker.metrics import Metrics
from worker.settings import MIB, StreamSettings
from worker.streams.line_streams import ANSWERING
from worker.streams.reads import read_new


@pytest.fixture
def station(client: redis.Redis, engine: Engine, tmp_path: Path, line: str) -> Station:
    return Station(client, engine, tmp_path, line)


def intake(idle: float = 0.001, **settings: int) -> Intake:
    return Intake(StreamSettings(claim_seconds=idle, **settings), "station-1", Metrics())


def leave_to(station: Station, line: str, consumer: str, count: int) -> list[str]:
    """Entries that a consumer was given and has not answered."""
    sent = [station.send(line, message(item(str(number)))) for number in range(count)]
    station.client.xreadgroup(ANSWERING, consumer, {station.streams(line).images: ">"})
    time.sleep(0.01)
    return sent


def read(reader: Intake, station: Station, **held: int) -> Read:
    return reader.read(station.client, station.keepers, held, (), 0)


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
        read(reader, station, **{line: 1})
    assert [(entry["line"], entry["entries"]) for entry in logs] == [(line, 1)]
    (consumer,) = station.client.xpending_range(station.streams(line).images, ANSWERING, left[0], left[0], 1)
    assert consumer["consumer"] == b"station-1"
    reader = intake()
    with capture_logs() as logs:
        time.sleep(0.01)
        read(reader, station, **{line: 1})
    assert (logs, reader.recovering(line)) == ([], False)


def test_what_another_process_of_this_name_left_is_taken_over_once_the_line_has_nothing_in_hand(
    station: Station, line: str
) -> None:
    sent = leave_to(station, line, "station-1", 3)
    reader = intake()
    assert read(reader, station, **{line: 1}).entries == []
    reader._claim_at = 0.0
    first = read(reader, station)
    assert (len(first.entries), first.alone) == (1, True)
    assert taken(reader, station) == sent
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

    monkeypatch.setattr("worker.intake.read_new", counted)
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
