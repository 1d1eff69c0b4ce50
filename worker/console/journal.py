"""What a line was told of late: who, when, what, and what its keeper said."""

import time
from typing import Any, NamedTuple

import msgpack

from worker.console.text import cut
from worker.streams.line_streams import LineStreams, entry_key

SHOWN = 20
ANSWERS = 100  # replies looked through


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
    replies = [_map(fields.get(b"reply")) for _, fields in streams.client.xrevrange(streams.replies, count=ANSWERS)]
    answers = {reply["command"]: reply for reply in replies if isinstance(reply.get("command"), str)}
    return [_told(key.decode(), _map(fields.get(b"command")), answers.get(key.decode())) for key, fields in commands]


def _told(key: str, command: dict[str, Any], answer: dict[str, Any] | None) -> Told:
    args = command.get("args")
    shown = " ".join(cut(str(value)) for value in args.values()) if isinstance(args, dict) else ""
    ms = entry_key(key)[0]
    if answer is None:
        ok, text = None, "no answer yet" if time.time() - ms / 1000 < 24 * 3600 else "no answer is kept"
    else:
        ok, text = answer.get("ok") is True, cut(str(answer.get("text", "")), 400)
    return Told(
        ms, cut(str(command.get("by", ""))) or "?", cut(str(command.get("name", "not a command"))), shown, ok, text
    )


def _map(packed: bytes | None) -> dict[str, Any]:
    """Anybody may have written there what is none."""
    try:
        value = msgpack.unpackb(packed or b"")
    except (ValueError, msgpack.UnpackException, RecursionError, TypeError):
        return {}
    return value if isinstance(value, dict) else {}
