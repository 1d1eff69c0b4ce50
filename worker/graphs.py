"""A GPU's work, recorded once for a number of images and replayed: one launch in place of hundreds."""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
import torch
from torch import Tensor

from worker.errors import one_line

AGAIN_SECONDS = 60.0  # after a lack of memory: another process may have had it

log = structlog.get_logger()


class Replayed:
    """A function of a batch of images, replayed as a CUDA graph.

    There is one graph for each power of two of images, and for `most` of them, recorded when it is first wanted; a
    batch in between is filled up. What cannot be recorded runs operation by operation: a backbone that looks at values,
    and for AGAIN_SECONDS, with all above it, a size that the device has no memory for twice.

    Args:
        function: from images [B, ...] on the device to a tensor [B, ...]; each image's result is its own.
        device: a CUDA device.
        most: images that come at once.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], device: torch.device, most: int) -> None:
        self.function = function
        self.device = device
        self.most = most
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle()  # shared: what a replay leaves is copied before the next
        self._beside = torch.cuda.Stream(device)  # for all recordings: a block of the pool is of its stream alone
        self._refused, self._until = 0, 0.0  # from so many images on nothing is recorded before that time

    def __call__(self, images: Tensor) -> Tensor:
        """Of images [B, ...] on the CPU; pinned ones are copied while the caller goes on."""
        B = len(images)
        size = min(1 << (B - 1).bit_length(), max(B, self.most))
        refused = size >= self._refused and size not in self._graphs and time.monotonic() < self._until
        graph = None if refused else self._graph(images, size)
        if graph is None:
            return self.function(images.to(self.device, non_blocking=True))
        replayed, given, result = graph
        given[:B].copy_(images, non_blocking=True)
        replayed.replay()
        return result[:B].clone()

    def _graph(self, images: Tensor, size: int) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor] | None:
        if size not in self._graphs:
            given = torch.zeros(size, *images.shape[1:], dtype=images.dtype, device=self.device)
            try:
                self._graphs[size] = self._recorded(given)
            except RuntimeError as error:
                torch.cuda.synchronize(self.device)  # GPU sync; a device that is lost says so here
                lacks = isinstance(error, torch.OutOfMemoryError)
                self._refused, self._until = (size, time.monotonic() + AGAIN_SECONDS) if lacks else (0, float("inf"))
                log.warning("no CUDA graph; the backbone runs op by op", images=size, error=one_line(error, 300))
                return None
        return self._graphs[size]

    def _recorded(self, given: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        beside, graph = self._beside, torch.cuda.CUDAGraph()
        beside.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(beside):  # where a recording fails, the stream before is the current one again
            self.function(given)  # libraries make their handles and choose their kernels
            with _waiting_refused():  # a recording that fails leaves torch 2.11's allocator unable to free memory
                self.function(given)
            with torch.cuda.graph(graph, self._pool, beside):
                result = self.function(given)
        torch.cuda.current_stream(self.device).wait_stream(beside)
        return graph, given, result


@contextmanager
def _waiting_refused() -> Iterator[None]:
    """What waits for the device within, as no recording may, raises RuntimeError."""
    before = torch.cuda.get_sync_debug_mode()
    warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")  # what it overlooks fails later
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
