"""Failpoints: places where a test lets the worker fail. Without WORKER_FAILPOINT in the environment each does nothing.

The variable is NAME[=DETAIL]:ACTION[:N]. When the place of that name is passed for the N-th time (1 if left out; with a
"+" every time from then on), with that detail where one is given, the process is killed ("kill"), crashes ("crash"),
goes no further ("hang"), or raises ("error", "oom" as a device does that is out of memory, "lost" as one does that is
gone).
"""

import faulthandler
import os
import signal
import threading
from collections.abc import Callable

VARIABLE = "WORKER_FAILPOINT"
NAMES = (
    "read", "decode", "forward", "gate", "gate_done",  # answering
    "learn_read", "apply", "temporary", "fsync", "rename", "commit", "commit_done", "acknowledge",  # learning
    "upload", "manifest",  # the same, with an object store
    "rank",  # of a process group; WHAT-RANK tells which part of the work, by which rank
)  # fmt: skip


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _crash() -> None:
    faulthandler._sigsegv()  # type: ignore[attr-defined]  # typeshed leaves out what exists for tests alone


def _hang() -> None:
    threading.Event().wait()


def _error() -> None:
    raise RuntimeError(f"{VARIABLE}: an error that nobody expected")


def _oom() -> None:
    import torch

    raise torch.OutOfMemoryError(f"{VARIABLE}: out of memory")


def _lost() -> None:
    import torch

    raise torch.AcceleratorError(f"{VARIABLE}: the device is gone")


_ACTIONS = {"kill": _kill, "crash": _crash, "hang": _hang, "error": _error, "oom": _oom, "lost": _lost}


def _nothing(_name: str, _detail: str = "") -> None:
    pass


def armed(text: str) -> Callable[..., None]:
    """The failpoint of a variable's text.

    Raises:
        ValueError: it is not NAME[=DETAIL]:ACTION[:N[+]].
    """
    place, _, rest = text.partition(":")
    action, _, count = rest.partition(":")
    count = count if rest != action else "1"
    wanted, _, wanted_detail = place.partition("=")
    if wanted not in NAMES or action not in _ACTIONS or not count.rstrip("+").isdigit():
        raise ValueError(
            f"{VARIABLE} is {text!r}, expected NAME[=DETAIL]:ACTION[:N[+]] with NAME of {', '.join(NAMES)} "
            f"and ACTION of {', '.join(_ACTIONS)}"
        )
    first, on, passed = int(count.rstrip("+")), count.endswith("+"), 0

    def failpoint(name: str, detail: str = "") -> None:
        nonlocal passed
        if name != wanted or (wanted_detail and detail != wanted_detail):
            return
        passed += 1
        if passed == first or (on and passed > first):
            _ACTIONS[action]()

    return failpoint


failpoint: Callable[..., None] = armed(os.environ[VARIABLE]) if VARIABLE in os.environ else _nothing
