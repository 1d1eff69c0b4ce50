"""Lines whose pictures are not what one expects: what comes of them, from the stream to the verdict."""

import gc
import math
import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from numpy.typing import NDArray

from mhpc.core.calibration import FLOOR
from tests.worker.faults.malformed import ENTRIES, IMAGES
from tests.worker.helpers import encoded, item, message, picture
from tests.worker.station import Station, stained
from worker.answering.answers import Opened
from worker.engine import Engine
from worker.errors import RejectedError
from worker.line import CALIBRATING, LEARNING, SCORING

Pixels = NDArray[np.uint8]


@pytest.fixture
def station(client: redis.Redis, engine: Engine, tmp_path: Path, line: str) -> Station:
    station = Station(client, engine, tmp_path, line)
    station.keepers[line].acquire("station-1#a")
    return station


def play(station: Station, line: str, first: int, last: int, pixels: Callable[[int], Pixels], batch: int = 4) -> None:
    """Answer and learn from pictures of the ids first to last."""
    keeper = station.keepers[line]
    for start in range(first, last + 1, batch):
        numbers = range(start, min(start + batch, last + 1))
        station.send(line, message(*[item(str(i), data=encoded(pixels(i))) for i in numbers]))
        station.turn()
        while keeper.learn(station.answering.opening.extract, 1, partial(station.answering.opening.usable, line)):
            if keeper.snapshot_due:
                keeper.snapshot()


def verdicts(station: Station, line: str, *pictures: bytes) -> list[dict[str, Any]]:
    station.send(line, message(*[item(f"asked {i}", data=data) for i, data in enumerate(pictures)]))
    station.turn()
    return station.results(line)[-len(pictures) :]


def assert_sound(results: list[dict[str, Any]]) -> None:
    """No NaN, no threshold of zero, no silent gap."""
    for result in results:
        if result["score"] is not None:
            assert math.isfinite(result["score"])
            assert np.isfinite(result["map"]).all()
        if result["threshold"] is not None:
            assert FLOOR <= result["threshold"] < math.inf


@pytest.mark.parametrize(
    "pixels",
    [lambda _: picture(0), lambda _: np.zeros((40, 48, 3), np.uint8)],
    ids=["identical pictures", "pure black"],
)
def test_a_line_of_pictures_without_variance_finds_every_other_picture_anomalous(
    station: Station, line: str, pixels: Callable[[int], Pixels]
) -> None:
    play(station, line, 1, 40, pixels)
    assert station.line(line).phase == SCORING
    same, other = verdicts(station, line, encoded(pixels(0)), stained(3))
    assert (same["anomalous"], other["anomalous"]) == (False, True)
    assert_sound(station.results(line))
    assert len(station.results(line)) == 42
    assert station.letters(line) == []


def test_a_line_that_changes_its_resolution_goes_on_in_every_phase(station: Station, line: str) -> None:
    sizes = [(40, 48), (96, 80), (33, 200)]

    def pixels(number: int) -> Pixels:
        h, w = sizes[number % 3]
        return np.asarray(picture(number, h, w))

    phases = set()
    for first in range(1, 60, 4):
        phases.add(station.line(line).phase)
        play(station, line, first, first + 3, pixels)
    assert phases == {LEARNING, CALIBRATING, SCORING}
    results = station.results(line)
    assert [result["id"] for result in results] == [str(number) for number in range(1, 61)]
    assert {result["map"].shape for result in results if result["score"] is not None} == {(8, 8)}
    assert_sound(results)
    assert station.letters(line) == []


def test_a_first_entry_of_one_picture_is_learned_from(station: Station, line: str) -> None:
    play(station, line, 1, 1, picture)
    assert station.line(line).learner.images_learned_ == 1
    play(station, line, 2, 40, picture)
    assert station.line(line).phase == SCORING
    assert_sound(station.results(line))


def test_two_products_in_turn_are_both_normal(station: Station, line: str) -> None:
    def pixels(number: int) -> Pixels:
        return picture(number) if number % 2 else 255 - picture(number) // 2

    play(station, line, 1, 60, pixels)
    assert station.line(line).phase == SCORING
    first, second, other = verdicts(station, line, encoded(pixels(71)), encoded(pixels(72)), stained(73))
    assert other["score"] > max(first["score"], second["score"])
    assert other["anomalous"]
    assert_sound(station.results(line))


def test_malformed_input_is_let_go_of_once_it_is_answered(station: Station, line: str) -> None:
    """Without Python's collector of cycles, whose rarest round takes minutes to come: what it would free piles up."""
    dice = random.Random(0)
    sent = [message(item("good"), item("bad", **change(dice))) for change in IMAGES]
    sent += [fields["batch"] for make in ENTRIES if "batch" in (fields := make(dice))]
    gc.collect()
    gc.disable()
    try:
        for batch in sent:
            station.send(line, batch)
            station.turn()
        station.turn()
        kept = Counter(type(thing).__name__ for thing in gc.get_objects() if type(thing) in (Opened, RejectedError))
    finally:
        gc.enable()
    assert len(station.letters(line)) == len(sent)
    assert not kept
