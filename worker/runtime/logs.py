"""Logs: structlog to stderr, for people on a terminal, as JSON elsewhere; all that a process says goes through it."""

import logging
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, Literal, TextIO

import structlog
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, Processor

from worker.errors import one_line

REPEAT_SECONDS = 10.0  # in which the same trouble of the same line is told once
LIMITED = ("warning", "error", "critical")  # what is no trouble is a fact of its own each time: commands, phases
FRAMES = 20  # of a traceback
KEY = r"(?:password|token|secret)"  # whatever stands before it, as in sentinel_password
SAID = rf"{KEY}\\*[\"']?\s*[:=]\s*b?\\*"
SECRETS = (
    (re.compile(rf"({SAID}\")(?:\\.|[^\"\\\n])*", re.IGNORECASE), r"\1***"),  # as JSON, TOML or Python have it
    (re.compile(rf"({SAID}')(?:\\.|[^'\\\n])*", re.IGNORECASE), r"\1***"),
    (re.compile(rf"({KEY}=)(?![\"'])[^&\s\x1b]+", re.IGNORECASE), r"\1***"),  # up to a terminal's colour
    (re.compile(r"(://)[^/\s]+@"), r"\1***@"),  # the user and password of an address; either may hold an @
    (re.compile(r"(Bearer )[^\s\"'\\]+"), r"\1***"),
)
SECRET_KEY = re.compile(KEY + "$", re.IGNORECASE)

log = structlog.get_logger()


def configure_logs(form: Literal["auto", "console", "json"]) -> Callable[[], None]:
    """One line per event; "auto" is for people on a terminal and JSON elsewhere.

    What the standard library's loggers say (uvicorn's among them) from warnings on, and Python's warnings, become
    events, too. Trouble that repeats itself is counted; locals are in no traceback, passwords in no address.

    Returns:
        What tells, at the end of the process, the repeats that were not told yet.
    """
    terminal = sys.stderr.isatty()
    people = form == "console" or (form == "auto" and terminal)
    repeats, sink = Repeats(), Sink(sys.stderr)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            repeats,
            sink.tell,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *(_for_people(terminal) if people else _for_machines()),
        ],
        logger_factory=lambda *_: sink,
    )
    root = logging.getLogger()
    if not any(isinstance(handler, ToStructlog) for handler in root.handlers):
        root.addHandler(ToStructlog())
    warnings.showwarning = _show_warning
    return repeats.tell_rest


class Sink:
    """Where lines go. On a full disk, or a pipe whose reader is gone, the process goes on without them, and the next
    line that goes through says how many were refused; the stream may have kept some of those, and writes them late."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.refused = 0
        self._lock = threading.Lock()  # a line is whole

    def tell(self, _logger: Any, _method: str, event: EventDict) -> EventDict:
        return {**event, "lines_refused": self.refused} if self.refused else event

    def msg(self, line: str) -> None:
        with self._lock:
            try:
                self.stream.write(line + "\n")
                self.stream.flush()
            except OSError:
                self.refused += 1
            else:
                self.refused = 0

    debug = info = warning = error = critical = msg  # by the level, as structlog calls it


def log_crash() -> None:
    """Tell of the exception that is being handled, which ends the process."""
    log.critical("the process ends by an error that nobody expected", exc_info=True)


def _for_people(terminal: bool) -> list[Processor]:
    renderer = structlog.dev.ConsoleRenderer(colors=terminal, exception_formatter=structlog.dev.plain_traceback)
    return [_fields_cleaned, renderer, lambda _logger, _method, rendered: _without_secrets(str(rendered))]


def _for_machines() -> list[Processor]:
    """An exception is one field, a list of what was raised while handling what, each with type, value and frames."""
    transformer = ExceptionDictTransformer(show_locals=False, max_frames=FRAMES)
    return [
        structlog.processors.ExceptionRenderer(transformer),
        _fields_cleaned,
        structlog.processors.JSONRenderer(default=lambda value: _without_secrets(repr(value))),
    ]


def _fields_cleaned(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Without secrets: looked at before they are rendered, since afterwards their own quotes are escaped."""
    return {key: _cleaned(value, key) for key, value in event.items()}


def _cleaned(value: Any, key: str = "") -> Any:
    if SECRET_KEY.search(key):
        return "***"
    if isinstance(value, dict):
        return {name: _cleaned(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_cleaned(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return _without_secrets(value) if isinstance(value, str) else value


def _without_secrets(text: str) -> str:
    """Whatever an error quotes."""
    for pattern, instead in SECRETS:
        text = pattern.sub(instead, text)
    return text


class Repeats:
    """Tells the same trouble of the same line once in so many seconds; `repeated` says how often more it came.

    Those that were held back are told with the next of their kind, or once their time is over, whatever comes next.

    Args:
        seconds: for which a kind of trouble is held back.
        clock: monotonic seconds.
    """

    def __init__(self, seconds: float = REPEAT_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self.clock = seconds, clock
        self._lock = threading.Lock()  # other threads log as well
        self._held: dict[tuple[Any, Any], tuple[float, int, EventDict]] = {}  # until when, how many, the last

    def __call__(self, _logger: Any, _method: str, event: EventDict) -> EventDict:
        if "repeated" in event:  # it is told late
            return event
        kind, now = (event.get("event"), event.get("line")), self.clock()
        with self._lock:
            late = self._over(now, but=kind)
            told = self._told(kind, now, event) if event["level"] in LIMITED else event
        for other in late:
            _tell(other)
        if told is None:
            raise structlog.DropEvent
        return told

    def tell_rest(self) -> None:
        """Tell all that is held back."""
        with self._lock:
            late = self._over(float("inf"))
        for event in late:
            _tell(event)

    def _told(self, kind: tuple[Any, Any], now: float, event: EventDict) -> EventDict | None:
        until, count, _ = self._held.get(kind, (now, 0, event))
        if now < until:
            self._held[kind] = until, count + 1, _remembered(event)
            return None
        self._held[kind] = now + self.seconds, 0, event
        return {**event, "repeated": count} if count else event

    def _over(self, now: float, but: tuple[Any, Any] | None = None) -> list[EventDict]:
        """Forget the kinds whose time is over; those of them that were held back."""
        over = [kind for kind, (until, _, _) in self._held.items() if now >= until and kind != but]
        held = [self._held.pop(kind) for kind in over]
        return [{**event, "repeated": count} for _, count, event in held if count]


def _remembered(event: EventDict) -> EventDict:
    """Without its traceback, which would keep alive all that its frames hold."""
    kept = {key: value for key, value in event.items() if key != "exc_info"}
    error = event.get("exc_info")
    error = sys.exc_info()[1] if error is True else error[1] if isinstance(error, tuple) else error
    return {"error": f"{type(error).__name__}: {one_line(error, 300)}", **kept} if error else kept


def _tell(event: EventDict) -> None:
    rest = dict(event)
    level, text = rest.pop("level"), rest.pop("event")
    log.log(logging.getLevelNamesMapping()[level.upper()], text, **rest)


class ToStructlog(logging.Handler):
    """What other libraries log, as events."""

    def emit(self, record: logging.LogRecord) -> None:
        log.log(record.levelno, record.getMessage().strip(), logger=record.name, exc_info=record.exc_info)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    log.warning(one_line(message), category=category.__name__, where=f"{filename}:{lineno}")
