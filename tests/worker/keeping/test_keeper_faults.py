"""Redis or a command fails in the middle of what a keeper does: nothing counts twice, nothing stays half."""

from collections.abc import Iterator
from typing import Any

import pytest
import redis
import torch
from torch import Tensor

from tests.worker.commanding import look, put_up_for_review, replies, told, trained
from tests.worker.helpers import patches
from tests.worker.keepers import ENTRIES, MakeKeeper, add, learn_all, opened
from worker.keeping.keeper import Keeper
from worker.keeping.looking import Look
from worker.keeping.owed import Owed
from worker.line import CALIBRATING
from worker.streams.control import send
from worker.streams.line_streams import Entry, LineStreams


def gone(*_: object, **__: object) -> Any:
    raise redis.ConnectionError("the reply is lost")


def failing_at_the_third_chunk(_line: str, entry: Entry) -> Iterator[Tensor]:
    for chunk in range(3):
        if chunk == 2:
            gone()
        yield patches(chunk, 8)


@pytest.mark.parametrize("before", [0, 6])
def test_an_entry_in_whose_middle_redis_fails_is_counted_once(
    make_keeper: MakeKeeper, streams: LineStreams, before: int
) -> None:
    add(streams, *ENTRIES[:before])
    keeper = learn_all(opened(make_keeper()))
    seen, calibrated = keeper.line.learner.images_seen_, len(keeper.line.calibration_scores)
    assert (keeper.line.phase == CALIBRATING) == (before == 6)
    add(streams, ENTRIES[before])
    for _ in range(3):
        with pytest.raises(redis.ConnectionError):
            keeper.learn(failing_at_the_third_chunk, 1)
        assert keeper.epoch == 0
        opened(keeper)
    learn_all(keeper)
    line = keeper.line
    assert (line.learner.images_seen_ - seen, len(line.calibration_scores) - calibrated) in [(4, 0), (0, 4)]


@pytest.mark.parametrize("name", ["relearn", "calibrate", "resume", "release", "rollback"])
def test_a_command_that_asks_redis_in_vain_changes_nothing_and_is_carried_out_once(
    make_keeper: MakeKeeper, streams: LineStreams, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    keeper = (
        learning_and_paused(make_keeper, streams) if name in ("resume", "release") else trained(make_keeper, streams)
    )
    args = {"entry": "9-9", "id": "part"} if name == "release" else {}
    if name == "release":
        told(keeper, "resume")
        put_up_for_review(keeper, why="quarantined")
    if name == "rollback":
        args = {"version": keeper.store.stems()[0]}
    before, answers = keeper.line.learner.images_learned_, len(replies(streams))
    as_it_was = of_line(keeper)
    send(streams, name, args, "ann")
    looks = Look(keeper)
    with monkeypatch.context() as lost:
        lost.setattr(streams.__class__, "last_id", gone)
        lost.setattr("worker.keeping.looking.review.find", gone)
        with pytest.raises(redis.ConnectionError):
            look(keeper, lambda _: patches(70, 1, shift=3.0), looks)
    assert of_line(keeper) == as_it_was
    assert (keeper.epoch, len(replies(streams))) == (0, answers)
    opened(keeper)
    looks._at = 0.0
    look(keeper, lambda _: patches(70, 1, shift=3.0), looks)
    assert [ok for ok, _ in replies(streams)[answers:]] == [True]
    if name == "release":
        assert keeper.line.learner.images_learned_ == before + 1


def of_line(keeper: Keeper) -> tuple[Any, ...]:
    line = keeper.line
    return line.phase, line.paused, line.applied_through, line.learner.images_learned_, line.threshold, line.standing


def learning_and_paused(make_keeper: MakeKeeper, streams: LineStreams) -> Keeper:
    add(streams, *ENTRIES[:3])
    keeper = learn_all(opened(make_keeper()))
    keeper.snapshot()
    assert told(keeper, "pause")[0]
    return keeper


def test_a_command_that_fails_by_itself_is_refused_and_the_line_is_as_it_was(
    make_keeper: MakeKeeper, streams: LineStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = trained(make_keeper, streams)
    put_up_for_review(keeper)
    anchors = keeper.line.learner.memory_.clone()
    pin = type(keeper.line.learner).pin

    def half(learner: Any, features: Tensor, radius: float) -> int:
        pin(learner, features, radius)
        raise RuntimeError("an edge that nobody thought of")

    monkeypatch.setattr(type(keeper.line.learner), "pin", half)
    looks = Look(keeper)
    send(streams, "normal", {"entry": "9-9", "id": "part"}, "ann")
    send(streams, "rate", {"rate": 0.1}, "ann")
    look(keeper, lambda _: patches(70, 1, shift=3.0), looks)
    assert (keeper.epoch, replies(streams)) == (0, [])
    opened(keeper)
    for _ in range(2):
        looks._at = 0.0
        look(keeper, lambda _: patches(70, 1, shift=3.0), looks)
    (ok, text), (later, _) = replies(streams)
    assert not ok
    assert text == "it failed: RuntimeError: an edge that nobody thought of"
    assert later
    assert torch.equal(keeper.line.learner.memory_, anchors)


CUBLAS = "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle)`"


def fails_by_cublas(*_: object) -> Any:
    raise RuntimeError(CUBLAS)


def test_a_library_of_the_device_that_fails_is_no_fault_of_the_entry(
    make_keeper: MakeKeeper, streams: LineStreams
) -> None:
    add(streams, ENTRIES[0])
    keeper = opened(make_keeper())
    with pytest.raises(RuntimeError, match="CUBLAS_STATUS"):
        keeper.learn(fails_by_cublas, 1)
    assert not keeper.reading.suspicious


def test_a_library_of_the_device_that_fails_is_no_fault_of_the_command(
    make_keeper: MakeKeeper, streams: LineStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = trained(make_keeper, streams)
    put_up_for_review(keeper)
    looks = Look(keeper)
    send(streams, "normal", {"entry": "9-9", "id": "part"}, "ann")
    with pytest.raises(RuntimeError, match="CUBLAS_STATUS"):
        look(keeper, fails_by_cublas, looks)
    assert (keeper.epoch, looks._failed, replies(streams)) == (0, {}, [])


def test_an_entry_is_decoded_once_however_many_of_its_parts_are_set_aside(streams: LineStreams) -> None:
    asked = []

    def usable(entry: Entry) -> list[Any]:
        asked.append(entry.id)
        return []

    owed = Owed()
    owed.set_aside(Entry("1-0", b"batch"), [0, 3, 5], usable)
    owed.set_aside(Entry("2-0", b"batch"), [], usable)
    assert asked == ["1-0"]
    assert [part.id for part in owed.review] == ["#0", "#3", "#5"]


def test_two_processes_of_one_name_are_told_of_each_other(make_keeper: MakeKeeper) -> None:
    first, second, other = make_keeper(), make_keeper(), make_keeper()
    opened(first, "station-1#a")
    opened(second, "station-1#b")
    first.lose("line lost")
    first.acquire("station-1#a", take_over="station-1")
    other.acquire("station-2#c", take_over="station-2")
    assert first.problem == "another process named station-1 keeps it: each needs a worker.name of its own"
    assert (other.epoch, other.problem) == (0, "")
