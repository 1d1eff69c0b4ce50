"""What is replayed is what would be computed: on a GPU, and where there is none what torch is asked for."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from worker.graphs import Replayed
from worker.scoring import fetch

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
CUDA = torch.device("cuda")
CPU = torch.device("cpu")


def images(count: int, seed: int = 0) -> Tensor:
    values = torch.randint(0, 256, (count, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return values.pin_memory()


def doubled(x: Tensor) -> Tensor:
    return x.to(CUDA).float() * 2 + 1


@on_gpu
def test_what_is_replayed_is_what_would_be_computed_for_any_number_of_images() -> None:
    replayed = Replayed(doubled, CUDA, 8)
    for count in (1, 3, 4, 5, 8, 3):
        x = images(count, count)
        torch.testing.assert_close(replayed(x).cpu(), x * 2.0 + 1, rtol=0, atol=0)


@on_gpu
def test_a_result_outlives_the_next_replay() -> None:
    replayed = Replayed(doubled, CUDA, 8)
    first, x = replayed(images(4, 1)), images(4, 1)
    replayed(images(4, 2))
    torch.testing.assert_close(first.cpu(), x * 2.0 + 1, rtol=0, atol=0)


@on_gpu
def test_one_graph_is_recorded_for_each_power_of_two() -> None:
    calls = []

    def counted(x: Tensor) -> Tensor:
        calls.append(len(x))
        return doubled(x)

    replayed = Replayed(counted, CUDA, 8)
    for count in (5, 6, 7, 8):
        replayed(images(count))
    assert set(calls) == {8}
    recorded = len(calls)
    replayed(images(8))
    assert len(calls) == recorded


@on_gpu
def test_no_batch_is_filled_up_above_the_most_that_come() -> None:
    sizes = []

    def counted(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return doubled(x)

    Replayed(counted, CUDA, 6)(images(5))
    assert set(sizes) == {6}


@on_gpu
def test_what_cannot_be_recorded_is_computed_all_the_same() -> None:
    def looks(x: Tensor) -> Tensor:
        y = doubled(x)
        return y if float(y.sum()) > 0 else -y  # waits for the device, which a recording may not

    replayed, x = Replayed(looks, CUDA, 8), images(3)
    for _ in range(2):
        torch.testing.assert_close(replayed(x).cpu(), x * 2.0 + 1, rtol=0, atol=0)
    torch.cuda.empty_cache()  # which torch 2.11 refuses after a recording that failed
    assert torch.cuda.get_sync_debug_mode() == 0


@on_gpu
def test_what_a_gpu_has_computed_is_fetched_as_it_was_when_asked_for() -> None:
    x = torch.arange(1000.0, device=CUDA)
    wait = fetch(x, x * 2)
    x.zero_()
    first, second = wait()
    torch.testing.assert_close(first, torch.arange(1000.0))
    torch.testing.assert_close(second, torch.arange(1000.0) * 2)


class Recorder:
    """Stands for a stream, and for a graph."""

    def __init__(self, *_: Any) -> None:
        pass

    def wait_stream(self, other: Any) -> None:
        pass

    def replay(self) -> None:
        pass


class Recordings(list[tuple[Any, Any]]):
    """The pool and the stream of each recording, and what torch does about what waits for the device."""

    waiting: int | str = 0


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> Recordings:
    """Has torch record for a GPU that there is none of."""
    made = Recordings()

    @contextmanager
    def graph(_: Recorder, pool: Any, stream: Any) -> Iterator[None]:
        made.append((pool, stream))
        yield

    def set_waiting(mode: int | str) -> None:
        made.waiting = mode

    doubles = {"Stream": Recorder, "CUDAGraph": Recorder, "graph": graph, "stream": lambda _: nullcontext()}
    doubles |= {"current_stream": Recorder, "graph_pool_handle": object, "synchronize": lambda _: None}
    doubles |= {"get_sync_debug_mode": lambda: made.waiting, "set_sync_debug_mode": set_waiting}
    for name, double in doubles.items():
        monkeypatch.setattr(torch.cuda, name, double)
    return made


def zeros(count: int) -> Tensor:
    return torch.zeros(count, 4, dtype=torch.uint8)


def test_graphs_share_their_memory(recordings: Recordings) -> None:
    """A pool gives what one recording has left to the next of the same stream alone."""
    replayed = Replayed(lambda x: x.float(), CPU, 8)
    for count in (1, 2, 5):
        replayed(zeros(count))
    assert len(recordings) == 3
    assert len(set(recordings)) == 1


def test_what_waits_for_the_device_is_found_before_a_recording_begins(recordings: Recordings) -> None:
    """A recording that fails leaves torch 2.11 unable to give memory back."""
    modes = []

    def looks(x: Tensor) -> Tensor:
        modes.append(recordings.waiting)
        if recordings.waiting == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        return x + 1.0

    replayed = Replayed(looks, CPU, 8)
    for _ in range(2):
        torch.testing.assert_close(replayed(zeros(3)), zeros(3) + 1.0)
    assert (recordings, modes) == ([], [0, "error", 0, 0])  # its libraries are made, it is found, and it runs twice


def test_after_a_lack_of_memory_nothing_as_large_is_recorded_for_a_minute(
    recordings: Recordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, lacks = [1000.0], [torch.OutOfMemoryError("no room for it twice")]
    monkeypatch.setattr("worker.graphs.time", SimpleNamespace(monotonic=lambda: clock[0]))

    def limited(x: Tensor) -> Tensor:
        if lacks:
            raise lacks.pop()
        return x.float()

    replayed = Replayed(limited, CPU, 16)
    replayed(zeros(8))
    for seconds, count, recorded in ((59, 8, 0), (59, 16, 0), (59, 4, 1), (60, 16, 2), (60, 8, 3), (60, 8, 3)):
        clock[0] = 1000.0 + seconds
        replayed(zeros(count))
        assert len(recordings) == recorded
    lacks.append(torch.OutOfMemoryError("nor for this one"))
    replayed(zeros(1))
    lacks.append(torch.OutOfMemoryError("which no replay asks for"))
    replayed(zeros(16))  # it is recorded
    assert len(lacks) == 1
