"""What people look at: a line's status, read from Redis alone. Imports no torch."""

import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

import redis

from worker.errors import ConfigurationError
from worker.settings import LINES_KEY, Settings
from worker.streams.address import shown
from worker.streams.client import connect as _connect
from worker.streams.control import COMMANDS, Reply, send, wait_for_reply
from worker.streams.ids import entry_key, is_entry_id, worker_of
from worker.streams.line_streams import ANSWERING, Backlog, LineStreams
from worker.streams.state import unreadable

IMAGES_KEY = re.compile(r"^mhpc:\{(.+)\}:images$")
NO_RIGHT = "; log in by redis.username and redis.password_file as a user who may, see deploy/redis/users.acl"
UNREAD = Backlog(None, 0, None)

T = TypeVar("T")


def connect(settings: Settings) -> redis.Redis:
    """A client that has been answered once; raises RedisUnreachableError."""
    return _connect(settings.redis)


def known_lines(client: Any) -> list[str]:
    """Names of all lines that have a stream."""
    keys = client.scan_iter("mhpc:{*}:images", count=1000, _type="stream")  # a call for each 10 keys would take long
    matches = (IMAGES_KEY.match(key.decode(errors="replace")) for key in keys)
    return sorted(match[1] for match in matches if match)


def line_status(client: Any, name: str) -> dict[str, Any]:
    """One line's state, backlog and keeper; `problem` says what is wrong with it, or keeps a key from being read, and
    `stopped` whether nothing is answered until that is mended."""
    streams, problems = LineStreams(client, name), list[str]()

    def look(key: str, read: Callable[[], T], otherwise: T) -> T:
        """What one key says; whatever is wrong with it hides neither the line's others nor other lines."""
        try:
            return read()
        except redis.ResponseError as error:
            problems.append(refused(error, key))
            return otherwise

    found = look(streams.state_key, lambda: client.hgetall(streams.state_key), dict[bytes, bytes]())
    state = _of_state(streams.state_key, found, problems)
    lag, pending, oldest = look(streams.images, lambda: _backlog(streams), UNREAD)
    holder = look(streams.lease, lambda: client.get(streams.lease), None)
    since, _, unkept = (state.pop("unkept") or "").partition(" ")  # what a worker said that could not load its version
    if holder or since != str(state["epoch"] or 0):
        unkept = ""
    return {
        "line": name,
        **state,
        "lag": lag,
        "pending": pending,
        "oldest_pending_seconds": look("TIME", lambda: _age(client, oldest), None) if oldest else None,
        "results": look(streams.scores, lambda: client.xlen(streams.scores), 0),
        "dead": look(streams.dead, lambda: client.xlen(streams.dead), 0),
        "keeper": worker_of(holder.decode(errors="replace")) if holder else None,
        # Before the first commit a keeper that stops its line says no more than the problem, and lets the lease lapse.
        "stopped": state["stopped"] or bool(state["problem"] and not holder),
        "problem": "; ".join(filter(None, [state["problem"], unkept, *problems])) or None,
    }


def _of_state(key: str, found: dict[bytes, bytes], problems: list[str]) -> dict[str, Any]:
    """What the keeper says of its line; None for what it has not said yet, and for what makes no sense, which is a
    problem: anybody who may write to Redis may have put it there."""
    stopping = unreadable(key, _as_text(found))
    problems += stopping.values()

    def said(field: str, read: Callable[[str], T], expected: str) -> T | None:
        value = b"" if field in stopping else found.get(field.encode(), b"")
        try:
            return read(value.decode()) if value else None
        except ValueError:  # of which UnicodeDecodeError is one
            came = repr(value.decode(errors="backslashreplace"))[:80]
            remedy = f"a worker writes it anew after HDEL {key} {field}"
            problems.append(f"{field} in {key} is {came}, expected {expected}; {remedy}")
            return None

    def text(field: str) -> str | None:
        return said(field, str, "text in UTF-8")

    def number(field: str) -> float | None:
        return said(field, _number, "a number")

    return {
        "phase": text("phase"),
        "model": text("model"),
        "epoch": said("epoch", int, "a whole number"),
        "applied_through": text("applied_through"),
        "done_through": text("done_through"),
        "threshold": number("threshold"),
        "provisional": text("provisional") == "1",
        "false_positive_rate": number("rate"),
        "rate_interval": said("rate_interval", lambda bounds: [_number(bound) for bound in bounds.split()], "numbers"),
        "progress": text("progress"),
        "outside_share": number("outside_share"),
        "subspace_change": number("subspace_change"),
        "quarantined": said("quarantined", int, "a whole number") or 0,
        "drift": number("drift"),
        "problem": text("problem"),
        "stopped": bool(text("stopped")),
        "unkept": text("unkept"),
    }


def _as_text(found: dict[bytes, bytes]) -> dict[str, str]:
    return {field.decode(errors="replace"): value.decode(errors="replace") for field, value in found.items()}


def _age(client: Any, entry: str) -> float:
    """Seconds since an entry came, by the clock that gave it its id: this machine's may be another."""
    seconds, microseconds = client.time()
    return float(max(0.0, seconds + microseconds / 1e6 - entry_key(entry)[0] / 1000))


def _backlog(streams: LineStreams) -> Backlog:
    """What waits; where no worker ever kept the line, all that came."""
    if not _exists(streams):
        return UNREAD
    if any(info["name"] == ANSWERING.encode() for info in streams.client.xinfo_groups(streams.images)):
        return streams.backlog(ANSWERING)
    return Backlog(streams.client.xlen(streams.images), 0, None)


def _exists(streams: LineStreams) -> bool:
    """Whether a line's images have a stream; by a right that workers have, too."""
    try:
        streams.client.xinfo_stream(streams.images)
    except redis.ResponseError as error:
        if "no such key" not in str(error):
            raise
        return False
    return True


def unknown(settings: Settings, client: Any, line: str) -> str:
    """What is to be said of a line that is not configured here, and that Redis knows nothing of; else ""."""
    streams = LineStreams(client, line)
    configured = line in [item.name for item in settings.lines]
    if configured or client.hget(LINES_KEY, line) or streams.state() or _exists(streams):
        return ""
    where = shown(settings.redis.url.get_secret_value())
    return f"line {line} is not at {where}: no picture was ever sent to it, and no worker knew it; is its name right?"


def refused(error: redis.RedisError, key: str = "") -> str:
    """What Redis did not do, with the remedy; without `key` nobody here knows which of a line's keys it is about."""
    if "WRONGTYPE" in str(error):
        named = key or f"Redis: {error}; one of the keys, which mhpc-worker check names,"
        return f"{named} holds something else than its name says: whose is it? Rename it, or delete it"
    remedy = NO_RIGHT if isinstance(error, redis.exceptions.NoPermissionError) else ""
    return f"Redis refuses {key}: {error}{remedy}" if key else f"Redis: {error}{remedy}"


def answered(client: Any, name: str) -> int | None:
    """Results that a line ever had; None where the server does not count (before Redis 7.0) or there are none."""
    try:
        info = client.xinfo_stream(LineStreams(client, name).scores)
    except redis.ResponseError:  # no such key, or another type: line_status says so
        return None
    added: int | None = info.get("entries-added")
    return added


def _number(text: str) -> float:
    """Raises ValueError, also for what JSON has not."""
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


def command(
    client: Any,
    line: str,
    name: str,
    args: list[str],
    by: str,
    seconds: float,
    given_up: Callable[[], bool] = lambda: False,
) -> Reply:
    """Send a command to a line's keeper and wait for what it says, until `given_up` says that nobody waits any more.

    Who interrupts that is told what becomes of the command: it is in the stream by then.

    Raises:
        ConfigurationError: no such command, or other arguments than it takes.
    """
    named, streams, sent = _arguments(name, args), LineStreams(client, line), ""
    try:
        sent = send(streams, name, named, by)
        reply = wait_for_reply(streams, sent, seconds, given_up)
    except KeyboardInterrupt:
        was = "was" if sent else "may have been"
        return Reply(False, f"interrupted, but the command {was} sent: a keeper obeys what waits in {streams.control}")
    if reply is None:
        why = "stopping, so not waited for" if given_up() else f"no answer within {seconds:g} s; {_why(streams, name)}"
        taken_back = f"XDEL {streams.control} {sent} takes it back"
        reply = Reply(False, f"{why}. The command waits in {streams.control}; {taken_back}")
    return reply


def _arguments(name: str, args: list[str]) -> dict[str, Any]:
    """By their names, as the command wants them."""
    if name not in COMMANDS:
        raise ConfigurationError(f"command {name!r} is unknown; expected one of {', '.join(COMMANDS)}")
    known = COMMANDS[name]
    if not sum(not arg.endswith("?") for arg in known) <= len(args) <= len(known):
        expected = " ".join(f"[{arg[:-1].upper()}]" if arg.endswith("?") else arg.upper() for arg in known) or "nothing"
        raise ConfigurationError(f"{name} takes {expected}, came: {' '.join(args) or 'nothing'}")
    named: dict[str, Any] = {arg.rstrip("?"): value for arg, value in zip(known, args, strict=False)}
    for arg in {"rate", "forgetting"} & set(named):
        try:
            named[arg] = float(named[arg])
        except ValueError:
            raise ConfigurationError(f"{arg} is {named[arg]!r}, expected a number") from None
        if not (0 < named[arg] < 1 or (arg == "forgetting" and named[arg] == 1)):
            most = "at most 1" if arg == "forgetting" else "below 1"
            raise ConfigurationError(f"{arg} is {named[arg]:g}, expected a number above 0 and {most}")
    if "entry" in named and not is_entry_id(named["entry"]):
        raise ConfigurationError(f"ENTRY is {named['entry']!r}, expected an id such as 1764150000000-0, and then ID")
    return named


def _why(streams: LineStreams, name: str) -> str:
    """Why a command is not answered, as far as Redis tells; of a line that is stopped, `resync` alone would be."""
    state, holder = streams.state(), streams.client.get(streams.lease)
    if name != "resync" and (stopped := state.get("stopped")):
        return f"it is stopped: {stopped}"
    if not holder:
        said = f"; the last one said: {problem}" if (problem := state.get("problem")) else ""
        return f"it has no keeper: start a worker{said}"
    return f"its keeper is {worker_of(holder.decode(errors='replace'))}"
