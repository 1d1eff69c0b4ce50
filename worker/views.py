"""What people look at: a line's status and its results, read from Redis alone. Imports no torch."""

import base64
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import redis

from worker.errors import ConfigurationError
from worker.message import decode_result
from worker.settings import Settings
from worker.streams.client import connect as _connect
from worker.streams.control import COMMANDS, Reply, send, wait_for_reply
from worker.streams.line_streams import ANSWERING, FROM_START, LineStreams, entry_key, newest_id

BLOCK_MS = 1000
READ = 100  # results in one reply
IMAGES_KEY = re.compile(r"^mhpc:\{(.+)\}:images$")


def connect(settings: Settings) -> redis.Redis:
    """A client that has been answered once; raises RedisUnreachableError."""
    return _connect(settings.redis)


def known_lines(client: Any) -> list[str]:
    """Names of all lines that have a stream."""
    matches = (IMAGES_KEY.match(key.decode()) for key in client.scan_iter("mhpc:{*}:images", _type="stream"))
    return sorted(match[1] for match in matches if match)


def line_status(client: Any, name: str) -> dict[str, Any]:
    """One line's state, backlog and keeper."""
    streams = LineStreams(client, name)
    state = streams.state()
    exists = client.exists(streams.images)
    lag, pending, oldest = streams.backlog(ANSWERING) if exists else (None, 0, None)
    holder = client.get(streams.lease)
    threshold = state.get("threshold")
    return {
        "line": name,
        "phase": state.get("phase"),
        "problem": state.get("problem") or None,
        "model": state.get("model") or None,
        "epoch": int(state["epoch"]) if "epoch" in state else None,
        "applied_through": state.get("applied_through"),
        "done_through": state.get("done_through"),
        "threshold": float(threshold) if threshold else None,
        "provisional": state.get("provisional") == "1",
        "false_positive_rate": _number(state.get("rate")),
        "rate_interval": [float(bound) for bound in state.get("rate_interval", "").split()] or None,
        "progress": state.get("progress") or None,
        "outside_share": _number(state.get("outside_share")),
        "subspace_change": _number(state.get("subspace_change")),
        "quarantined": int(state.get("quarantined") or 0),
        "drift": _number(state.get("drift")),
        "lag": lag,
        "pending": pending,
        "oldest_pending_seconds": max(0.0, time.time() - entry_key(oldest)[0] / 1000) if oldest else None,
        "results": client.xlen(streams.scores),
        "dead": client.xlen(streams.dead),
        "keeper": holder.decode().rpartition("#")[0] if holder else None,
    }


def _number(text: str | None) -> float | None:
    return float(text) if text else None


def command(client: Any, line: str, name: str, args: list[str], by: str, seconds: float) -> Reply:
    """Send a command to a line's keeper and wait for what it says.

    Raises:
        ConfigurationError: no such command, or other arguments than it takes.
    """
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
    streams = LineStreams(client, line)
    reply = wait_for_reply(streams, send(streams, name, named, by), seconds)
    if reply is None:
        holder = client.get(streams.lease)
        keeper = f"its keeper is {holder.decode().rpartition('#')[0]}" if holder else "it has no keeper: start a worker"
        reply = Reply(False, f"no answer within {seconds:g} s; {keeper}. The command waits in {streams.control}")
    return reply


def results(client: Any, line: str, from_start: bool) -> Iterator[dict[str, Any]]:
    """A line's results as they come, each as the map that was published; the heat map becomes nested lists."""
    streams = LineStreams(client, line)
    last: Any = (
        FROM_START if from_start else newest_id(client, streams.scores)
    )  # "$" would pass what comes between calls
    while True:
        for _, entries in client.xread({streams.scores: last}, count=READ, block=BLOCK_MS) or ():
            for entry, fields in entries:
                last = entry
                result = decode_result(fields[b"result"])
                if result.get("map") is not None:
                    result["map"] = result["map"].round(3).tolist()
                yield result


def result_json(result: dict[str, Any]) -> str:
    """A result as one JSON document; bytes in its meta are given as base64."""
    return json.dumps(result, default=lambda value: base64.b64encode(value).decode())


def result_text(result: dict[str, Any]) -> str:
    """A result on one line of a terminal."""
    verdict = {None: "-", True: "ANOMALOUS", False: "ok"}[result["anomalous"]]
    score = "-" if result["score"] is None else f"{result['score']:.3f}"
    threshold = "-" if result["threshold"] is None else f"{result['threshold']:.3f}"
    latency = f"{result['latency_ms']:.0f} ms"
    identity = result["id"] if result["id"].isprintable() else repr(result["id"])  # it may hold a terminal's commands
    return f"{verdict:<9} {score:>8} / {threshold:<8} {latency:>9}  {result['phase']:<11} {identity}"
