"""Workers with a failpoint, forked from a process that has imported what takes long: who is to be killed at work shall
not spend its time on imports. Nothing of the worker is imported here: that arms its failpoint."""

import os
import signal
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

VARIABLE = "WORKER_FAILPOINT"
STALLED_SECONDS = 120.0
forked: Any = get_context("forkserver")
forked.set_forkserver_preload(["torch", "torchvision", "mhpc.core.backbones", "mhpc.core.learner", "uvicorn"])


def work(config: Path, failpoint: str, stalled_seconds: float) -> None:
    os.environ[VARIABLE] = failpoint
    log = os.open(config.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from worker.configuration import load_settings
    from worker.errors import WorkerError
    from worker.process import run_worker
    from worker.runtime import pulse

    pulse.STALLED_SECONDS = stalled_seconds
    try:
        run_worker(load_settings(config, {}))
    except WorkerError as error:
        sys.exit(error.exit_code)


def killed_at(config: Path, name: str) -> None:
    """Let a worker work until it passes that place; a start passes the commit by itself once."""
    time = 2 if name in ("commit", "commit_done") else 1
    process = forked.Process(target=work, args=(config, f"{name}:kill:{time}", STALLED_SECONDS))
    process.start()
    process.join(60)
    code = process.exitcode
    process.kill()
    assert code == -signal.SIGKILL, f"{name} is not passed"


def supervised(config: Path, failpoint: str, stalled_seconds: float, done: Callable[[], bool]) -> list[int | None]:
    """Let a worker work until all is done, started again whenever it ends by itself; the codes that it ended with."""
    from tests.worker.helpers import eventually  # not above: it leads to the worker

    codes = list[int | None]()
    while True:
        process = forked.Process(target=work, args=(config, failpoint, stalled_seconds))
        process.start()
        try:
            eventually(lambda p=process: p.exitcode is not None or done(), 60)  # type: ignore[misc]  # binds the loop's
            if done():
                return codes
            codes.append(process.exitcode)
        finally:
            process.kill()
            process.join()
