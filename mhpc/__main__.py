"""`mhpc`, or `python -m mhpc`: what becomes of Ctrl-C while the command line is imported."""

import os
import signal
import sys

INTERRUPTED = 130  # as any command ends on Ctrl-C


def main() -> None:
    """Run the command line; Ctrl-C ends it without a traceback."""
    heeds = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not behind a shell's `&`, say
    if heeds:  # at once: what is being imported may swallow an exception, or crash by it
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    from mhpc.cli import app

    if heeds:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
