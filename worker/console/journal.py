"""What a line was told of late: who, when, what, and what its keeper said."""

import time
from itertools import islice
from typing import Any, NamedTuple

from worker.console.text import cut
from worker.console.unpacking import unpacked
from worker.streams.ids import entry_key
from worker.streams.line_streams import LineStreams

SHOWN = 20
ANSWERS = 100  # replies looked through
ARGUMENTS = 4  # no command takes so many


class Told(NamedTuple):
    """A command and the answer to it; `ok` is None until there is one."""

    ms: int
    by: str
    name: str
    args: str
    ok: bool | None
    text: str


def journal(streams: LineStreams) -> list[Told]:
    """The newest commands first. Raises redis.RedisError."""
    commands = streams.client.xrevrange(streams.control, count=SHOWN)
    if not commands:
        return []
    replies = [
        unpacked(fields.get(b"reply")) or {} for _, fields in streams.client.xrevrange(streams.replies, count=ANSWERS)
    ]
    answers = {reply["command"]: reply for reply in replies if isinstance(reply.get("command"), str)}
    return [
        _told(key.decode(), unpacked(fields.get(b"command")) or {}, answers.get(key.decode()))
        for key, fields in commands
    ]


def _told(key: str, command: dict[str, Any], answer: dict[str, Any] | None) -> Told:
    args = command.get("args")
    given = [_text(value) for value in islice(args.values(), ARGUMENTS)] if isinstance(args, dict) else []
    ms = entry_key(key)[0]
    if answer is None:
        ok, text = None, "no answer yet" if time.time() - ms / 1000 < 24 * 3600 else "no answer is kept"
    else:
        ok, text = answer.get("ok") is True, cut(_text(answer.get("text")), 400)
    by, name = cut(_text(command.get("by"))), cut(_text(command.get("name")))
    return Told(ms, by or "?", name or "not a command", cut(" ".join(given), 200), ok, text)


def _text(value: Any) -> str:
    """Maps and lists are no argument, name or answer."""
    return cut(str(value), 400) if isinstance(value, str | int | float) else ""
