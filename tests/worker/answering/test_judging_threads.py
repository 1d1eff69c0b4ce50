"""Batches on threads of a CPU, while turns go on."""

import os
import sys
import threading
import time

import pytest
from torch import Tensor

from mhpc.core.patch_maps import PatchMaps
from tests.worker.answering.test_judging import MAY_STAY, ids, turn
from tests.worker.answering.test_judging import station as station  # a fixture
from tests.worker.helpers import eventually, item, message
from tests.worker.station import Station
from worker.answering.judging import Judging
from worker.line import LEARNING, SCORING

on_threads = pytest.mark.parametrize("station", [2], indirect=True, ids=["on threads"])


def answered(station: Station, line: str, expected: list[str]) -> bool:
    """Turn; whether the line has just these results now."""
    turn(station)
    return ids(station, line) == expected


@on_threads
def test_two_batches_are_judged_at_the_same_time(station: Station, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real, both = station.engine.extract, threading.Barrier(2, timeout=60)

    def extract(images: list[Tensor]) -> PatchMaps:
        both.wait()  # for the other batch: one after the other they would wait for ever
        return real(images)

    monkeypatch.setattr(station.engine, "extract", extract)
    for name in ("1", "2"):
        station.send(line, message(item(name)))
        turn(station)
    turn(station)
    assert ids(station, line) == ["1", "2"]


@on_threads
def test_turns_go_on_while_a_batch_takes_long(station: Station, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real, may_go_on = station.engine.extract, threading.Event()
    monkeypatch.setattr(station.engine, "extract", lambda images: (may_go_on.wait(60), real(images))[1])
    monkeypatch.setattr(Judging, "may_stay_under_way", MAY_STAY)
    station.send(line, message(item("1")))
    before = spent(station, "forward")

    def under_way() -> bool:
        station.answering.turn(station.client, station.keepers, block_ms=1)
        return station.answering.judging.under_way

    eventually(under_way)
    assert [under_way() for _ in range(20)] == 20 * [True]  # each waits for the thread for a moment
    assert station.answering.judging.since < time.monotonic() - 0.03  # for the watchdog
    may_go_on.set()

    def answered() -> bool:
        turn(station)
        return ids(station, line) == ["1"]

    eventually(answered)
    assert spent(station, "forward") - before > 0.05  # all that the turns have waited for it


@on_threads
def test_what_is_judged_but_not_landed_hangs_nowhere(station: Station, line: str) -> None:
    station.send(line, message(item("1")))
    turn(station)  # the next one does not come: Redis is away
    judging = station.answering.judging
    assert judging.under_way
    eventually(lambda: judging.since > time.monotonic() - 0.001)


@on_threads
def test_learning_is_looked_after_only_where_something_has_moved(
    station: Station, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, may_go_on = station.engine.extract, threading.Event()
    monkeypatch.setattr(station.engine, "extract", lambda images: (may_go_on.wait(60), real(images))[1])
    monkeypatch.setattr(Judging, "may_stay_under_way", MAY_STAY)
    moved = []
    station.send(line, message(item("1")))
    for _ in range(3):
        turn(station)
        moved.append(not station.answering.stands_still)
    assert moved == [True, False, False]  # begun, waited for, waited for
    may_go_on.set()

    def landed() -> bool:
        turn(station)
        return not station.answering.stands_still

    eventually(landed)
    assert ids(station, line) == ["1"]


@on_threads
def test_a_batch_of_other_lines_is_answered_before_one_that_takes_longer(
    station: Station, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, begun, may_go_on = station.engine.extract, threading.Event(), threading.Event()

    def extract(images: list[Tensor]) -> PatchMaps:
        if not begun.is_set():
            begun.set()
            may_go_on.wait(120)
        return real(images)

    def slow_has_begun() -> bool:
        turn(station)
        return begun.is_set()

    monkeypatch.setattr(station.engine, "extract", extract)
    monkeypatch.setattr(Judging, "may_stay_under_way", MAY_STAY)
    station.send(line, message(item("slow")))
    eventually(slow_has_begun)  # or the other would be in its batch, or its thread the first
    station.send(f"{line}-2", message(item("quick")))

    eventually(lambda: answered(station, f"{line}-2", ["quick"]))
    station.send(line, message(item("behind")))
    turn(station)
    assert ids(station, line) == []
    may_go_on.set()
    eventually(lambda: answered(station, line, ["slow", "behind"]))


@on_threads
def test_what_comes_before_all_turns_waits_for_no_thread_that_judges_others(
    station: Station, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, may_go_on, niceness = station.engine.extract, threading.Event(), dict[str, int]()

    def extract(images: list[Tensor]) -> PatchMaps:
        name = threading.current_thread().name
        niceness[name] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        if name.startswith("judge_"):
            may_go_on.wait(60)
        return real(images)

    monkeypatch.setattr(station.engine, "extract", extract)
    monkeypatch.setattr(Judging, "may_stay_under_way", MAY_STAY)
    many = [str(number) for number in range(3 * station.engine.max_batch)]
    station.send(line, message(*map(item, many)))

    def all_judge() -> bool:
        turn(station)
        return len(niceness) == 3  # the first of them came early

    eventually(all_judge)
    station.send(f"{line}-2", message(item("early")))

    eventually(lambda: answered(station, f"{line}-2", ["early"]))
    assert ids(station, line) == []
    may_go_on.set()
    eventually(lambda: answered(station, line, many))
    assert niceness["judge_0"] == niceness["judge_1"]
    assert sys.platform != "linux" or niceness["judge-early_0"] < niceness["judge_0"]


@on_threads
@pytest.mark.parametrize(("phase", "begun"), [(SCORING, 3), (LEARNING, 4)])
def test_while_a_line_learns_one_more_batch_is_begun_than_there_are_threads(
    station: Station, line: str, monkeypatch: pytest.MonkeyPatch, phase: str, begun: int
) -> None:
    real, may_go_on = station.engine.extract, threading.Event()

    def extract(images: list[Tensor]) -> PatchMaps:
        if threading.current_thread().name.startswith("judge_"):  # not what comes before all turns, as the first batch
            may_go_on.wait(60)
        return real(images)

    monkeypatch.setattr(station.engine, "extract", extract)
    monkeypatch.setattr(Judging, "may_stay_under_way", MAY_STAY)
    monkeypatch.setattr(station.keepers[line], "epoch", 1)
    monkeypatch.setattr(station.keepers[line].line, "phase", phase)
    many, size = [str(number) for number in range(6 * station.engine.max_batch)], station.engine.max_batch
    station.send(line, message(*map(item, many)))

    def taken() -> int:
        turn(station)
        return len(many) - station.answering.batcher.waiting(line)

    eventually(lambda: taken() == begun * size)
    station.send(f"{line}-2", message(item("early")))
    eventually(lambda: answered(station, f"{line}-2", ["early"]))  # which waits for none of them
    more = [taken() for _ in range(5)]
    may_go_on.set()
    assert more == 5 * [begun * size]
    eventually(lambda: answered(station, line, many))


@on_threads
def test_a_failing_batch_is_blamed_on_its_lines_once_it_is_landed(
    station: Station, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = station.engine.extract, iter([RuntimeError("out of luck")])

    def extract(images: list[Tensor]) -> PatchMaps:
        for failure in failures:
            raise failure
        return real(images)

    monkeypatch.setattr(station.engine, "extract", extract)
    station.send(line, message(item("1"), item("2")))
    eventually(lambda: answered(station, line, ["1", "2"]))  # they came again, one by one
    assert station.pending(line) == 0


@on_threads
def test_what_the_loop_waits_for_threads_is_shared_as_their_time_was(station: Station, line: str) -> None:
    before = [spent(station, stage) for stage in ("forward", "score")]
    station.send(line, message(item("1")))
    began = time.perf_counter()
    turn(station)
    turn(station)
    wall = time.perf_counter() - began
    now = [spent(station, stage) for stage in ("forward", "score")]
    taken = [after - earlier for after, earlier in zip(now, before, strict=True)]
    assert min(taken) > 0
    assert sum(taken) < wall


def spent(station: Station, stage: str) -> float:
    registry = station.engine.metrics.registry
    return registry.get_sample_value("mhpc_stage_seconds_sum", {"stage": stage}) or 0.0
