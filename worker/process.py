"""The process around a Worker: its signals, and how it ends."""

import gc
import signal
from collections.abc import Callable
from types import FrameType

from worker.daemon import Worker
from worker.devices import device_failures
from worker.environment import collect
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
    # One that came since `run` began was held back there: the configuration may have been read before it.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])
    device = worker.settings.worker.device
    with device_failures(device):
        worker.startup()
    collect()
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
