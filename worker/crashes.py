"""Whether the process before this one crashed: a kill is no failure, a crash may be an entry's."""

import faulthandler
from contextlib import suppress
from pathlib import Path
from typing import TextIO
from urllib.parse import quote

import structlog

log = structlog.get_logger()


class CrashFile:
    """Where a fatal signal (SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL) leaves its traceback for the next process.

    SIGKILL, SIGTERM and a power cut leave nothing. The last traceback is kept beside it, for people.
    """

    def __init__(self, directory: Path, worker: str) -> None:
        self.path = directory / f".{quote(worker, safe='')}.crash"
        self._file: TextIO | None = None

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

    def close(self) -> None:
        """Leave no trace: the process ends by itself."""
        if self._file is not None:
            faulthandler.disable()
            self._file.close()
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
