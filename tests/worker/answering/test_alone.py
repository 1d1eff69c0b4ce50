"""An entry that is tried alone, image by image, beside the answers of other lines."""

from pathlib import Path

import pytest
import redis

from tests.worker.answering.test_batching import decode_all
from tests.worker.helpers import item, message
from tests.worker.station import Station
from worker.answering import turns as answering
from worker.engine import Engine
from worker.streams.line_streams import ANSWERING

IDS = [str(number) for number in range(6)]


@pytest.fixture
def other(line: str) -> str:
    return f"{line}-other"


@pytest.fixture
def station(
    client: redis.Redis, engine: Engine, tmp_path: Path, line: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> Station:
    """It has an entry of six images to be tried alone, one in each turn."""
    monkeypatch.setattr(answering, "ALONE_SECONDS", 0.0)
    station = Station(client, engine, tmp_path, line, other)
    station.send(line, message(*map(item, IDS)))
    client.xreadgroup(ANSWERING, "station-1", {station.streams(line).images: ">"})
    station.answering.intake.rewind([line], alone=True)
    return station


def turn(station: Station) -> None:
    """Without an end to what is in hand."""
    decode_all(station.answering.batcher)  # turns are counted: none passes while a picture is still being decoded
    station.answering.turn(station.client, station.keepers, block_ms=None)


def finish(station: Station) -> None:
    while station.turn():
        pass


def answered(station: Station, name: str) -> list[str]:
    return [result["id"] for result in station.results(name)]


def marks(station: Station, name: str) -> int:
    return int(station.client.hlen(station.streams(name).attempts))


def test_another_line_is_answered_while_an_entry_of_many_images_is_tried_alone(
    station: Station, line: str, other: str
) -> None:
    turn(station)
    station.send(other, message(item("light")))
    turns = 1
    while not answered(station, other):
        turn(station)
        turns += 1
        assert turns < len(IDS)
    assert answered(station, line) == []
    while not answered(station, line):
        assert marks(station, line) == 0  # what ends the process between two images is neither's
        turn(station)
    finish(station)
    assert (answered(station, line), answered(station, other)) == (IDS, ["light"])
    assert (station.pending(line), station.pending(other)) == (0, 0)


def test_an_image_that_was_given_up_stays_so_when_the_process_ends_before_the_entry_is_through(
    station: Station, line: str, other: str, tmp_path: Path
) -> None:
    (pending,) = station.client.xpending_range(station.streams(line).images, ANSWERING, "-", "+", 1)
    for _ in range(3):  # as three processes that crashed left it
        station.streams(line).mark(f"{pending['message_id'].decode()}/0")
    turn(station)
    assert (marks(station, line), station.letters(line)) == (1, [])
    station.answering.close()
    again = Station(station.client, station.engine, tmp_path, line, other)
    again.answering.intake.rewind([line], alone=True)
    finish(again)
    assert answered(again, line) == IDS[1:]
    assert [letter["id"] for letter in again.letters(line)] == ["0"]
    assert (marks(again, line), again.pending(line)) == (0, 0)


def test_an_entry_that_is_let_go_half_way_comes_again_whole(station: Station, line: str, other: str) -> None:
    for _ in range(3):
        turn(station)
    station.answering.rewind([line])
    finish(station)
    assert (answered(station, line), marks(station, line), station.pending(line)) == (IDS, 0, 0)


def test_entries_of_two_lines_are_tried_alone_one_after_the_other(station: Station, line: str, other: str) -> None:
    turn(station)
    station.send(other, message(item("a"), item("b")))
    station.client.xreadgroup(ANSWERING, "station-1", {station.streams(other).images: ">"})
    station.answering.intake.rewind([other], alone=True)
    while not answered(station, line):
        assert answered(station, other) == []
        turn(station)
    finish(station)
    assert (answered(station, line), answered(station, other)) == (IDS, ["a", "b"])
    assert (station.pending(line), station.pending(other)) == (0, 0)


def test_where_redis_goes_away_meanwhile_the_entry_is_let_go_and_nothing_is_answered_empty(
    station: Station, line: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn(station)
    station.send(other, message(item("light")))
    with monkeypatch.context() as away:
        away.setattr(station.streams(line), "client", redis.Redis(port=1))
        away.setattr(station.streams(line), "_mark", redis.Redis(port=1).register_script("return 1"))
        with pytest.raises(redis.ConnectionError):
            turn(station)
    station.answering.finish(station.client, station.keepers, 60)  # as a worker that is stopped before Redis is back
    assert (answered(station, line), station.pending(line)) == ([], 1)
    assert answered(station, other) == ["light"]
    station.answering.rewind([line, other])
    finish(station)
    assert (answered(station, line), answered(station, other)) == (IDS, ["light"])
