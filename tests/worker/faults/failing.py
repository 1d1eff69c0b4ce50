"""Workers with a failpoint, forked from a process that has imported what takes long: who is to be killed at work shall
not spend its time on imports. Nothing of the worker is imported here: that arms its failpoint."""

import os
import signal
from multiprocessing import get_context
from pathlib import Path
from typing import Any

VARIABLE = "WORKER_FAILPOINT"
forked: Any = get_context("forkserver")
forked.set_forkserver_preload(["torch", "torchvision", "mhpc.core.backbones", "mhpc.core.learner", "uvicorn"])


def work(config: Path, failpoint: str) -> None:
    os.environ[VARIABLE] = failpoint
    log = os.open(config.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from worker.configuration import load_settings
    from worker.process import run_worker

    run_worker(load_settings(config, {}))


def killed_at(config: Path, name: str) -> None:
    """Let a worker work until it passes that place; a start passes the commit by itself once."""
    time = 2 if name in ("commit", "commit_done") else 1
    process = forked.Process(target=work, args=(config, f"{name}:kill:{time}"))
    process.start()
    process.join(60)
    code = process.exitcode
    process.kill()
    assert code == -signal.SIGKILL, f"{name} is not passed"
