"""Producers that send an image twice: with streams.unique_ids it is answered and learned once."""

from pathlib import Path

import pytest
import redis

from tests.worker.helpers import item, message
from tests.worker.keepers import opened
from tests.worker.station import Station
from worker.engine import Engine
from worker.failpoints import armed
from worker.streams.line_streams import ANSWERING


@pytest.fixture
def station(client: redis.Redis, engine: Engine, tmp_path: Path, line: str) -> Station:
    return Station(client, engine, tmp_path, line, unique_ids=4)


def answered(station: Station, line: str) -> list[str]:
    while station.turn():
        pass
    return [result["id"] for result in station.results(line)]


def learned(station: Station, line: str) -> int:
    keeper = opened(station.keepers[line])
    while keeper.learn(station.answering.opening.extract, 1):
        pass
    return int(keeper.line.learner.images_seen_)


def test_a_repeat_within_the_window_is_answered_and_learned_once(station: Station, line: str) -> None:
    for batch in (["a", "b"], ["b", "c"], ["c", "c"]):
        station.send(line, message(*map(item, batch)))
    assert answered(station, line) == ["a", "b", "c"]
    assert (station.letters(line), station.pending(line)) == ([], 0)
    assert learned(station, line) == 3


def test_learning_that_comes_first_learns_it_once_and_leaves_the_answer(station: Station, line: str) -> None:
    for batch in (["a", "b"], ["b", "a"]):
        station.send(line, message(*map(item, batch)))
    assert learned(station, line) == 2
    assert answered(station, line) == ["a", "b"]


def test_behind_the_window_an_id_is_a_new_ones(station: Station, line: str) -> None:
    for batch in (["a", "b", "c", "d", "e"], ["a"]):
        station.send(line, message(*map(item, batch)))
    assert answered(station, line) == ["a", "b", "c", "d", "e", "a"]


def test_who_was_given_up_and_came_again_has_a_whole_window(station: Station, line: str) -> None:
    streams = station.streams(line)
    assert streams.is_first("a", "1-0", 0, 4)
    streams.disown("a", "1-0", 0)
    assert [streams.is_first(name, "2-0", place, 4) for place, name in enumerate("bca")] == [True] * 3
    assert [streams.is_first("d", "3-0", 0, 4), streams.is_first("a", "4-0", 0, 4)] == [True, False]
    assert [streams.is_first(name, "5-0", place, 4) for place, name in enumerate("efga")] == [True] * 4
    assert station.client.hlen(streams.seen) == station.client.llen(streams.seen_order) == 4


@pytest.mark.parametrize("alone", [False, True])
def test_an_entry_that_comes_again_is_no_repeat_of_itself(station: Station, line: str, alone: bool) -> None:
    sent = station.send(line, message(item("a"), item("b")))
    station.client.xreadgroup(ANSWERING, "station-1", {station.streams(line).images: ">"})
    for place, name in enumerate("ab"):  # as a process that was killed before the gate has left it
        assert station.streams(line).is_first(name, sent, place, 4)
    station.answering.intake.rewind([line], alone=alone)
    assert answered(station, line) == ["a", "b"]


def test_what_could_not_be_decoded_may_be_sent_again_whole(station: Station, line: str) -> None:
    station.send(line, message(item("a", data=b"cut")))
    station.send(line, message(item("a")))
    assert answered(station, line) == ["a"]
    assert [letter["id"] for letter in station.letters(line)] == ["a"]


def test_what_was_given_up_may_be_sent_again(station: Station, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(station.cache, "capacity", 2**28)  # else nobody has use for a forward pass
        patched.setattr("worker.engine.failpoint", armed("forward:error:1+"))
        station.send(line, message(item("a")))
        assert answered(station, line) == []
    station.send(line, message(item("a")))
    assert answered(station, line) == ["a"]
    assert [letter["reason"] for letter in station.letters(line)] == ["failed"]


def test_a_learner_that_lags_leaves_the_answers_as_they_are(station: Station, line: str) -> None:
    for batch in (["a"], ["b", "c", "d", "e"], ["a"], ["f"]):
        station.send(line, message(*map(item, batch)))
    assert answered(station, line) == ["a", "b", "c", "d", "e", "a", "f"]
    assert learned(station, line) == 7
    station.send(line, message(item("f")))
    assert answered(station, line)[7:] == []
    assert station.counted("images_total", line=line, outcome="skipped") == 1


def test_without_a_window_each_image_that_comes_is_answered(
    client: redis.Redis, engine: Engine, tmp_path: Path, line: str
) -> None:
    station = Station(client, engine, tmp_path, line)
    for _ in range(2):
        station.send(line, message(item("a"), item("a")))
    assert answered(station, line) == ["a"] * 4
    assert not client.exists(station.streams(line).seen)
