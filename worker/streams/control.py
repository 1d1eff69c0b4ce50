"""Commands to a line and the keeper's answers to them. Imports no torch."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import msgpack

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


class Command(NamedTuple):
    """One entry of the control stream; `problem` says why it cannot be one."""

    entry: str
    name: str
    args: dict[str, Any]
    by: str
    problem: str = ""


class Reply(NamedTuple):
    """The keeper's answer."""

    ok: bool
    text: str


def encode_command(name: str, args: dict[str, Any], by: str) -> bytes:
    packed: bytes = msgpack.packb({"v": VERSION, "name": name, "args": args, "by": by})
    return packed


def send(streams: LineStreams, name: str, args: dict[str, Any], by: str) -> str:
    """Put a command into the line's control stream; returns its entry id."""
    entry: bytes = streams.client.xadd(streams.control, {"command": encode_command(name, args, by)}, maxlen=10_000)
    return entry.decode()


def read_commands(streams: LineStreams, after: str) -> list[Command]:
    """The commands behind an id, oldest first."""
    entries = streams.client.xrange(streams.control, min=f"({after}", count=READ)
    return [_decoded(entry.decode(), fields.get(b"command")) for entry, fields in entries]


def _decoded(entry: str, value: bytes | None) -> Command:
    def refused(problem: str) -> Command:
        return Command(entry, "", {}, "", problem)

    if value is None or len(value) > COMMAND_BYTES:
        came = "no field `command`" if value is None else f"{len(value)} bytes"
        return refused(f"{came}, expected a msgpack map of at most {COMMAND_BYTES} bytes in `command`")
    try:
        message = msgpack.unpackb(value, strict_map_key=True)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        return refused(f"`command` is not msgpack: {error}")
    if not isinstance(message, dict) or message.get("v") != VERSION:
        return refused(f"expected a map with `v` {VERSION}, `name`, `args` and `by`")
    name, args, by = message.get("name"), message.get("args", {}), message.get("by", "")
    if not isinstance(name, str) or name not in COMMANDS or not isinstance(args, dict) or not isinstance(by, str):
        return refused(
            f"`name` is {name!r:.40}, expected one of {', '.join(COMMANDS)}, with a map `args` and a text `by`"
        )
    required = {arg for arg in COMMANDS[name] if not arg.endswith("?")}
    if not required <= set(args) <= {arg.rstrip("?") for arg in COMMANDS[name]}:
        expected = ", ".join(COMMANDS[name]) or "none"
        return refused(f"{name} came with the arguments {', '.join(map(str, args)) or 'none'}, expected {expected}")
    given = {arg: value for arg, value in args.items() if value is not None or arg in required}
    for arg in {"entry", "id", "version"} & set(given):
        if not isinstance(given[arg], str):
            return refused(f"{arg} of {name} is {given[arg]!r:.40}, expected a text")
    return Command(entry, name, given, by)


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
