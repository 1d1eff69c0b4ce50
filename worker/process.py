"""The process around a Worker: its signals, and how it ends."""

import gc
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import structlog

from worker.checks import unwritable
from worker.daemon import Worker
from worker.devices import device_failures
from worker.errors import DeviceError
from worker.runtime.environment import freeze
from worker.settings import Settings

log = structlog.get_logger()


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
    # One that came before is held back (worker.__main__): the configuration may have been read before it.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])
    device = worker.settings.worker.device
    with device_failures(device):
        worker.startup()
    directory = worker.settings.snapshots.directory
    if isinstance(directory, Path) and (problem := unwritable(directory)):
        log.error(problem)  # it goes on: what was learned waits for the folder, answers do not
    freeze()
    try:
        with device_failures(device):
            worker.run()
            worker.drain()  # not after an error: a half-applied entry must not reach a snapshot
    except DeviceError as error:
        worker.crash_file.note(str(error))  # a part may trip it each time: then no batch must hold it again
        raise
    finally:
        worker.shutdown()
        gc.unfreeze()  # libraries complain of what the interpreter's end finds uncollected
