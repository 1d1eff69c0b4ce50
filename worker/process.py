"""The process around a Worker: its signals, and what a lost device means."""

import gc
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from worker.daemon import Worker
from worker.errors import DeviceError
from worker.settings import Settings


def run_worker(settings: Settings, reread: Callable[[], Settings] | None = None) -> None:
    """Run until SIGTERM or SIGINT; SIGHUP has the lines read anew."""
    serve(Worker(settings, reread))


def serve(worker: Worker) -> None:
    """Run a worker until its process is asked to stop. The handlers set a flag, the loop decides."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        worker.stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    signal.signal(signal.SIGHUP, lambda _signal, _frame: worker.reloading.set())
    device = worker.settings.worker.device
    with _lost(device):
        worker.startup()
    gc.collect()
    gc.freeze()  # what is there now stays: each full collection would look through it, 0.15 s that answers wait
    try:
        with _lost(device):
            worker.run()
            worker.drain()  # not after an error: a half-applied entry must not reach a snapshot
    finally:
        worker.shutdown()
        gc.unfreeze()  # libraries complain of what the interpreter's end finds uncollected


@contextmanager
def _lost(device: str) -> Iterator[None]:
    """Raises DeviceError where the device fails within, or has no memory for a single image."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceError(f"{device} failed: {error}; lower model.max_batch or bank_size") from error
    except torch.AcceleratorError as error:  # the process can use it no more
        remedy = "start the worker again, as its supervisor should; what is not in a snapshot comes again"
        raise DeviceError(f"{device} failed: {error}; {remedy}") from error
