"""Whether the process before this one crashed: a kill is no failure, a crash may be an entry's."""

import faulthandler
import math
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO
from urllib.parse import quote

import structlog

SIGNS = 8  # of life that are heeded, in the time that the process may be without

log = structlog.get_logger()


class CrashFile:
    """Where a fatal signal (SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL) leaves its traceback for the next process.

    So does the end of a process that hangs (`watch`). SIGKILL, SIGTERM and a power cut leave nothing.
    The last traceback is kept beside it, for people.
    """

    def __init__(self, directory: Path, worker: str) -> None:
        self.path = directory / f".{quote(worker, safe='')}.crash"
        self._file: TextIO | None = None
        self._watched_since = -math.inf
        self._noted = False

    def open(self) -> bool:
        """Begin to watch; whether the process of that name before this one crashed."""
        crashed = False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.is_file() and (text := self.path.read_text(errors="replace")):
                crashed = True
                log.error("the process before crashed; what it had in hand is tried one by one", traceback=text[:2000])
                self.path.replace(self.path.with_suffix(".crash.last"))
            self._file = self.path.open("w")
        except OSError as error:
            log.warning("crashes cannot be told from kills", file=str(self.path), error=str(error))
            return crashed
        faulthandler.enable(self._file)
        return crashed

    def watch(self, since: float, seconds: float) -> None:
        """End the process with its traceback here, and with code 1, once a sign of life is so old.

        Whoever supervises it starts it again. Ended from outside, by SIGTERM and SIGKILL, it would leave no traceback,
        and the next process would hang by the same. It ends whatever holds the interpreter.

        Args:
            since: when what the process is at was begun, by the monotonic clock. Signs that are hardly younger than the
                one before are passed over.
        """
        if self._file is None or since < self._watched_since + seconds / SIGNS:
            return
        self._watched_since = since
        left = since + seconds * (1 + 1 / SIGNS) - time.monotonic()
        faulthandler.dump_traceback_later(max(left, 0.001), exit=True, file=self._file)

    def note(self, text: str) -> None:
        """Leave this for the next process, as a crash leaves its traceback."""
        if self._file is not None:
            self._noted = True
            with suppress(OSError):
                self._file.write(text)
                self._file.flush()

    def close(self) -> None:
        """Leave no trace but a note: the process ends by itself."""
        if self._file is not None:
            faulthandler.cancel_dump_traceback_later()
            faulthandler.disable()
            with suppress(OSError):
                self._file.close()
                if not self._noted:
                    self.path.unlink(missing_ok=True)
