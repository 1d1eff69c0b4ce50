"""A command on a terminal of 80 columns, as a person has it."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from types import TracebackType

from tests.worker.helpers import DEADLINE_SECONDS, eventually

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal:
    """`mhpc-worker` with these arguments; it is ended with the block."""

    def __init__(self, *arguments: str) -> None:
        self._here, there = pty.openpty()
        fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        environment = {
            name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "worker", *arguments],
            stdin=there, stdout=there, stderr=there, env={**environment, "TERM": "xterm-256color"},
        )  # fmt: skip
        os.close(there)
        self._written = b""

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._here)

    def written(self) -> str:
        """All that it has written so far, colours and all."""
        try:
            while select.select([self._here], [], [], 0)[0] and (more := os.read(self._here, 65536)):
                self._written += more
        except OSError:  # it ended
            pass
        return self._written.decode(errors="replace")

    def shows(self, text: str) -> None:
        """Wait for a text on it."""
        eventually(lambda: text in ESCAPES.sub("", self.written()))

    def press(self, key: str) -> None:
        os.write(self._here, key.encode())

    def ended(self) -> int:
        """Wait for the end; the exit code."""
        return self.process.wait(DEADLINE_SECONDS)
