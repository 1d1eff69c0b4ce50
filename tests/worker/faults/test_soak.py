"""The soak finds a leak that is one, and none where memory only sways."""

import os
import random

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.worker.faults.malformed import ENTRIES, IMAGES
from tests.worker.faults.soak import growth, resident_by_file, resident_kib
from tests.worker.helpers import item, message
from worker.errors import RejectedError
from worker.message import Rejected, decode_batch, decode_pixels
from worker.settings import LimitSettings


def swaying(seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """An hour of samples, each much like the one before it."""
    steps, at, noise = np.random.default_rng(seed).normal(0, 100, 720), 0.0, list[float]()
    for step in steps:
        noise.append(at := 0.9 * at + step)
    return np.arange(720) / 12, 400_000 + np.array(noise)


@pytest.mark.parametrize("seed", range(5))
def test_a_leak_of_fifty_kib_a_minute_is_found_and_memory_that_sways_is_none(seed: int) -> None:
    minutes, kib = swaying(seed)
    assert not growth(minutes, kib).leaks
    leak = growth(minutes, kib + 50 * minutes)
    assert leak.leaks
    assert abs(leak.slope - 50) < 15


@pytest.mark.parametrize("minute", [14, 21, 40, 59])
def test_one_step_is_no_leak_and_steps_without_end_are_one(minute: int) -> None:
    minutes = np.arange(720) / 12
    step = growth(minutes, np.where(minutes > minute, 400_312.0, 400_000.0))
    assert 0 < step.slope < 2 * step.error
    dice = np.random.default_rng(minute)
    assert growth(minutes, np.cumsum(np.where(dice.random(720) < 1 / 30, 312.0, 0.0))).leaks


def test_what_is_resident_is_told_by_file() -> None:
    kib, whole = resident_by_file(os.getpid()), resident_kib(os.getpid())[0]
    assert kib["anonymous"] > 10_000
    assert any(name.startswith("libtorch") and size > 1000 for name, size in kib.items())
    assert abs(kib.total() - whole) < 0.05 * whole


@pytest.mark.parametrize("kind", range(len(ENTRIES)))
def test_each_malformed_entry_costs_one_dead_letter(kind: int) -> None:
    with pytest.raises(RejectedError):
        decode_batch(ENTRIES[kind](random.Random(0)).get("batch"), LimitSettings())


@pytest.mark.parametrize("kind", range(len(IMAGES)))
def test_each_malformed_image_costs_one_dead_letter_and_none_of_its_neighbours(kind: int) -> None:
    batch = message(item("before"), item("bad", **IMAGES[kind](random.Random(0))), item("behind"))
    before, bad, behind = decode_batch(batch, LimitSettings())
    assert not isinstance(before, Rejected)
    assert not isinstance(behind, Rejected)
    if not isinstance(bad, Rejected):
        with pytest.raises(RejectedError):
            decode_pixels(bad, LimitSettings())
