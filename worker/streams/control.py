"""Commands to a line and the keeper's answers to them. Imports no torch."""

import reprlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import msgpack
import redis

from worker.streams.cluster import Call, together
from worker.streams.line_streams import LineStreams

VERSION = 1
COMMAND_BYTES = 16_384
READ = 16  # commands in one turn, or answers in one look
POLL_SECONDS = 0.05

# What each command takes: the names of its arguments, those that may be left out with a "?".
COMMANDS = {
    "relearn": ("forgetting?",),
    "calibrate": (),
    "pause": (),
    "resume": (),
    "rate": ("rate",),
    "normal": ("entry", "id"),
    "anomalous": ("entry", "id"),
    "release": ("entry", "id"),
    "drop": ("entry", "id"),
    "rollback": ("version?",),
    "resync": (),
}

EXPECTED = f"expected a map with `v` {VERSION}, `name`, `args` and `by`"


class Command(NamedTuple):
    """One entry of the control stream; `problem` says why it cannot be one: then it has no `args`, and `name` and `by`
    are what came where that are texts."""

    entry: str
    name: str
    args: dict[str, Any]
    by: str
    problem: str = ""


Came: TypeAlias = list[Command] | redis.ResponseError


class Reply(NamedTuple):
    """The keeper's answer."""

    ok: bool
    text: str


def quoted(value: Any) -> str:
    """What came, cut, for a refusal; built-in `repr` fails on lists that are nested some thousand deep."""
    return f"{reprlib.repr(value):.40}"


def encode_command(name: str, args: dict[str, Any], by: str) -> bytes:
    packed: bytes = msgpack.packb({"v": VERSION, "name": name, "args": args, "by": by})
    return packed


def send(streams: LineStreams, name: str, args: dict[str, Any], by: str) -> str:
    """Put a command into the line's control stream; returns its entry id."""
    entry: bytes = streams.client.xadd(streams.control, {"command": encode_command(name, args, by)}, maxlen=10_000)
    return entry.decode()


def read_commands(streams: LineStreams, after: str) -> list[Command]:
    """The commands behind an id, oldest first."""
    return _commands(_ask(streams, after)(streams.client))


def read_commands_of_all(client: Any, after: Mapping[LineStreams, str]) -> dict[str, Came]:
    """Of each line those behind its id, in one go; by line, an error in place of its commands.

    Raises:
        redis.ConnectionError, redis.TimeoutError: ask again.
    """
    replies = together(client, [(streams.control, _ask(streams, last)) for streams, last in after.items()])
    return {
        streams.line: reply if isinstance(reply, redis.ResponseError) else _commands(reply)
        for streams, reply in zip(after, replies, strict=True)
    }


def _ask(streams: LineStreams, after: str) -> Call:
    return lambda to: to.xrange(streams.control, min=f"({after}", count=READ)


def _commands(entries: Any) -> list[Command]:
    return [_decoded(entry.decode(), fields.get(b"command")) for entry, fields in entries]


def _decoded(entry: str, value: bytes | None) -> Command:
    try:
        message = _unpacked(value)
    except ValueError as error:
        return Command(entry, "", {}, "", str(error))
    name: Any = message.get("name")
    args, by = message.get("args", {}), message.get("by", "")
    if problem := _problem(message.get("v"), name, args, by):
        return Command(entry, name if isinstance(name, str) else "", {}, by if isinstance(by, str) else "", problem)
    given = {arg: value for arg, value in args.items() if value is not None or arg in COMMANDS[name]}
    return Command(entry, name, given, by)


def _unpacked(value: bytes | None) -> dict[str, Any]:
    """Raises ValueError, with a text for the sender."""
    if value is None or len(value) > COMMAND_BYTES:
        came = "no field `command`" if value is None else f"{len(value)} bytes"
        raise ValueError(f"{came}, expected a msgpack map of at most {COMMAND_BYTES} bytes in `command`")
    try:
        message = msgpack.unpackb(value, strict_map_key=True)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise ValueError(f"`command` is not msgpack: {error}") from None
    if not isinstance(message, dict):
        raise ValueError(f"`command` is {quoted(message)}, {EXPECTED}")
    return message


def _problem(v: Any, name: Any, args: Any, by: Any) -> str:
    """Why these are no command; "" where they are one."""
    if v != VERSION:
        return f"`v` is {quoted(v)}, {EXPECTED}"
    if not isinstance(name, str) or name not in COMMANDS:
        return f"`name` is {quoted(name)}, expected one of {', '.join(COMMANDS)}"
    if not isinstance(args, dict):
        return f"`args` of {name} is {quoted(args)}, expected a map, empty or left out where there are none"
    if not isinstance(by, str):
        return f"`by` of {name} is {quoted(by)}, expected a text, or none at all"
    required = {arg for arg in COMMANDS[name] if not arg.endswith("?")}
    if not required <= set(args) <= {arg.rstrip("?") for arg in COMMANDS[name]}:
        expected = ", ".join(COMMANDS[name]) or "none"
        return f"{name} came with the arguments {', '.join(map(str, args)) or 'none'}, expected {expected}"
    for arg in ("entry", "id", "version"):
        value = args.get(arg)
        if not isinstance(value, str) and (arg in required or value is not None):
            return f"{arg} of {name} is {quoted(value)}, expected a text"
    return ""


def encode_reply(command: Command, reply: Reply) -> bytes:
    fields = {"v": VERSION, "command": command.entry, "name": command.name, "by": command.by, "ts": time.time()}
    packed: bytes = msgpack.packb({**fields, **reply._asdict()})
    return packed


def wait_for_reply(
    streams: LineStreams, command: str, seconds: float, given_up: Callable[[], bool] = lambda: False
) -> Reply | None:
    """The keeper's answer to the command of that entry id, or None if none came in time, or before it was given up."""
    last, deadline = "0-0", time.monotonic() + seconds
    while time.monotonic() < deadline and not given_up():
        # Not XREAD, for which a worker's user has no right: its configuration is what is at hand.
        page = streams.client.xrange(streams.replies, min=f"({last}", count=READ)
        for entry, fields in page:
            last = entry.decode()
            if (reply := _answer_to(command, fields.get(b"reply"))) is not None:
                return reply
        if len(page) < READ:
            time.sleep(POLL_SECONDS)
    return None


def _answer_to(command: str, value: bytes | None) -> Reply | None:
    """The reply, if it is this command's; anybody may have put something else there."""
    try:
        reply = msgpack.unpackb(value or b"")
        return Reply(bool(reply["ok"]), str(reply["text"])) if reply["command"] == command else None
    except (ValueError, TypeError, KeyError, RecursionError, msgpack.UnpackException):
        return None
