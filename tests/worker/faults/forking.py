"""Workers that are forked from a process which has imported all they need, so that a kill meets work and no import."""

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before numpy and torch come: who has threads cannot be forked

import torch  # noqa: E402 - after the environment

from worker.configuration import load_settings  # noqa: E402 - after the environment
from worker.process import run_worker  # noqa: E402 - after the environment


class ForkedWorker:
    """A worker in a process of its own, from the moment that it is made."""

    def __init__(self, settings: dict[str, Any], log: Path) -> None:
        self.log = log
        self.pid = os.fork()
        if not self.pid:
            _be_a_worker(settings, log)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def end(self) -> int:
        """Ask it to end; returns its exit code."""
        os.kill(self.pid, signal.SIGTERM)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def check(self) -> None:
        """Complain if it ended by itself."""
        ended, status = os.waitpid(self.pid, os.WNOHANG)
        if ended:
            last = self.log.read_text(errors="replace")[-2000:]
            raise SystemExit(f"the worker ended by itself, {os.waitstatus_to_exitcode(status)}: {last}")


def _be_a_worker(settings: dict[str, Any], log: Path) -> None:
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, sys.stdout.fileno())
        os.dup2(output, sys.stderr.fileno())
        torch.set_num_threads(2)  # a thread for each of two batches, as on the cores of a plant
        run_worker(load_settings(None, settings))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # what the parent has open and waiting is not the child's to close
