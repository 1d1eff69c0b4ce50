"""A batch stays under way while the next turn begins, by a GPU and on threads alike."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import torch

from mhpc.core.drift import DriftMonitor
from mhpc.core.patch_maps import PatchMaps
from tests.worker.helpers import item, message
from tests.worker.station import MODEL, State, Station
from worker.answering import batching
from worker.answering.judging import GPU_AHEAD, Judging
from worker.engine import Engine
from worker.line import LEARNING, SCORING

OTHER = "0000000001-0000000002"
MAY_STAY = Judging.may_stay_under_way


@pytest.fixture(params=[1, 2], ids=["by a GPU", "on threads"])
def station(
    request: pytest.FixtureRequest,
    client: redis.Redis,
    engine: Engine,
    tmp_path: Path,
    line: str,
    states: dict[str, State],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Station]:
    monkeypatch.setattr(engine, "passes", request.param)
    monkeypatch.setattr(Judging, "may_stay_under_way", lambda _, __, begun, busy: int(begun))
    monkeypatch.setattr(batching, "FRESH_SECONDS", 60.0)  # a batch is of all that is in hand, however long that takes
    station = Station(client, engine, tmp_path, line, f"{line}-2")
    for name in station.keepers:
        station.restore(name, states[SCORING])
    yield station
    station.answering.close()


def turn(station: Station) -> None:
    station.answering.turn(station.client, station.keepers, block_ms=None)
    station.answering.settle()


def ids(station: Station, line: str) -> list[str]:
    return [result["id"] for result in station.results(line)]


def test_a_batch_is_answered_once_the_next_has_begun(station: Station, line: str) -> None:
    station.send(line, message(item("1"), item("2")))
    turn(station)
    assert ids(station, line) == []
    station.send(line, message(item("3")))
    turn(station)
    assert ids(station, line) == ["1", "2"]


def test_a_gpu_is_given_two_batches_before_the_first_is_waited_for(
    station: Station, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Judging, "may_stay_under_way", lambda _, __, begun, busy: GPU_AHEAD if begun else 0)
    answered = []
    for number in range(4):
        station.send(line, message(item(str(number))))
        turn(station)
        answered.append(ids(station, line))
    assert answered == [[], [], ["0"], ["0", "1"]]
    turn(station)
    assert ids(station, line) == ["0", "1", "2", "3"]
    assert station.pending(line) == 0


@pytest.mark.parametrize("station", [1], indirect=True, ids=["by a GPU"])
def test_a_gpu_keeps_none_under_way_where_no_batch_was_begun_or_a_line_learns(
    station: Station, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(station.engine, "device", torch.device("cuda"))
    judging, keeper = station.answering.judging, station.keepers[line]
    assert MAY_STAY(judging, {line: keeper}, begun=True, busy=False) == GPU_AHEAD
    assert MAY_STAY(judging, {line: keeper}, begun=False, busy=False) == 0
    monkeypatch.setattr(keeper, "epoch", 1)
    monkeypatch.setattr(keeper.line, "phase", LEARNING)
    assert MAY_STAY(judging, {line: keeper}, begun=True, busy=False) == 0


def test_where_nothing_more_comes_the_last_batch_is_answered_at_once(station: Station, line: str) -> None:
    station.send(line, message(item("1")))
    turn(station)
    turn(station)
    assert ids(station, line) == ["1"]
    assert station.pending(line) == 0


def test_images_of_one_entry_in_several_batches_are_answered_together_and_in_order(station: Station, line: str) -> None:
    names = [str(number) for number in range(2 * station.engine.max_batch + 3)]
    station.send(line, message(*map(item, names), item("broken", data=b"no picture")))
    for _ in range(5):
        turn(station)
    assert ids(station, line) == names
    assert [letter["id"] for letter in station.letters(line)] == ["broken"]


def test_a_result_names_the_version_that_its_batch_was_judged_by(station: Station, line: str) -> None:
    station.send(line, message(item("1")))
    turn(station)
    station.line(line).serve(station.line(line).served_by(OTHER))
    station.send(line, message(item("2")))
    for _ in range(2):
        turn(station)
    assert [result["model"] for result in station.results(line)] == [MODEL, OTHER]


def test_what_comes_again_while_it_is_under_way_is_answered_once(station: Station, line: str) -> None:
    station.send(line, message(item("1"), item("2")))
    turn(station)
    station.answering.rewind([line])
    for _ in range(3):
        turn(station)
    assert ids(station, line) == ["1", "2"]
    assert station.counted("images_total", line=line, outcome="scored") == 2


def test_the_drift_monitor_sees_each_image_once(station: Station, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[int]()
    monkeypatch.setattr(DriftMonitor, "update", lambda _, scores, __: seen.append(len(scores)))
    station.send(line, message(item("1"), item("2")))
    turn(station)
    station.line(line).serve(station.line(line).served_by(OTHER))  # a commit
    turn(station)
    assert sum(seen) == 2
    station.send(line, message(item("3")))
    turn(station)
    station.answering.rewind([line])
    for _ in range(3):
        turn(station)
    assert sum(seen) == 3


def test_results_under_way_wait_for_no_batch_to_fill_up(station: Station, line: str) -> None:
    station.answering.batcher.max_wait = 60.0
    station.send(line, message(item("1")))
    turn(station)
    assert station.answering.judging.under_way
    station.send(line, message(item("2")))
    began = time.monotonic()
    station.answering.turn(station.client, station.keepers, block_ms=60_000)
    assert not station.answering.judging.under_way
    assert station.answering.batcher.waiting(line) == 1
    assert time.monotonic() - began < 30


def test_a_line_that_is_served_no_more_leaves_what_is_under_way(station: Station, line: str) -> None:
    station.send(line, message(item("1")))
    turn(station)
    station.answering.forget(line)
    station.answering.turn(station.client, {}, block_ms=None)
    assert (ids(station, line), station.pending(line)) == ([], 1)


def test_features_that_are_not_finite_are_blamed_on_their_line(
    station: Station, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = station.engine.extract
    monkeypatch.setattr(
        station.engine, "extract", lambda images: PatchMaps(tuple(m * float("nan") for m in real(images).maps))
    )
    station.send(line, message(item("1")))
    for _ in range(8):
        turn(station)
    (letter,) = station.letters(line)
    assert letter["reason"] == "failed"
    assert "NaN" in letter["error"]
