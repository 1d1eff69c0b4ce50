"""`mhpc-worker`, or `python -m worker`: what becomes of signals while the command line is imported."""

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130  # as any command ends on Ctrl-C


def main() -> None:
    """Run the command line; Ctrl-C ends it without a traceback from its first moment on.

    A worker imports far more, within `run`, and holds nothing before worker.process sets its own handlers.
    """
    runs = sys.argv[1:2] == ["run"]
    heeds = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not behind a shell's `&`, say
    if heeds:
        signal.signal(signal.SIGINT, _end)
    if runs:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])  # it waits for its handler
        if os.getpid() == 1:  # a container's: the kernel drops what it has no handler for
            signal.signal(signal.SIGTERM, _end)
    from worker.cli.app import main as command_line

    if heeds and not runs:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        command_line()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _end(number: int, _: FrameType | None) -> None:
    """At once: what is being imported may swallow an exception, or crash by it."""
    os._exit(128 + number)  # as shells count


if __name__ == "__main__":
    main()
