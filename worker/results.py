"""A line's results as they come, for people and for programs that read text. Imports no torch."""

import base64
import json
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgpack

from worker.errors import one_line, printable
from worker.message import ID_LENGTH, decode_result
from worker.streams.client import CONNECTION_ERRORS
from worker.streams.ids import FROM_START
from worker.streams.line_streams import LineStreams, newest_id

BLOCK_MS = 1000
AGAIN_SECONDS = 1.0  # to the next look at a server that is not reached
READ = 100  # results in one reply
DEEPEST = 100  # levels of lists and maps in a result
NO_RESULT = (KeyError, ValueError, TypeError, AttributeError, RecursionError, msgpack.UnpackException)


def follow(
    client: Any, line: str, from_start: bool, tell: Callable[[str], None] = lambda text: None
) -> Iterator[dict[str, Any]]:
    """A line's results as they come, each as the map that was published, in JSON's kinds of values: the heat map is
    nested lists, bytes are base64, and what is no number is null.

    What is no result, whoever put it there, is left out, and a server that is not reached is waited for; `tell` hears
    of both.
    """
    streams, away = LineStreams(client, line), False
    last: Any = FROM_START if from_start else newest_id(client, streams.scores)  # "$" would pass what comes meanwhile
    while True:
        try:
            found = client.xread({streams.scores: last}, count=READ, block=BLOCK_MS) or ()
        except CONNECTION_ERRORS as error:
            if not away:
                tell(f"Redis is not reached, and waited for: {one_line(error, 200)}")
            away = True
            time.sleep(AGAIN_SECONDS)
            continue
        if away:
            tell("Redis is back")
        away = False
        for _, entries in found:
            for entry, fields in entries:
                last = entry.decode()
                try:
                    result = _result(fields[b"result"])
                except NO_RESULT as error:
                    told = f"{type(error).__name__}: {one_line(error, 200)}"
                    tell(f"left out: entry {last} of {streams.scores} is no result: {told}")
                    continue
                yield result


def _result(value: bytes) -> dict[str, Any]:
    """Raises whatever a value gives that is no result."""
    result = decode_result(value)
    if result.get("map") is not None:
        result["map"] = result["map"].round(3).tolist()
    plain: dict[str, Any] = _plain(result)
    as_text(plain)  # has all that people are shown
    return plain


def _plain(value: Any, levels: int = DEEPEST) -> Any:
    """In JSON's kinds of values; msgpack has more of them, and those who publish are of any kind."""
    if levels == 0:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels")
    plain = partial(_plain, levels=levels - 1)
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [*map(plain, value)]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)  # a msgpack.Timestamp


def as_json(result: dict[str, Any]) -> str:
    """A result as one JSON document."""
    return json.dumps(result, allow_nan=False)


def as_text(result: dict[str, Any]) -> str:
    """A result on one line of a terminal; an anomalous one ends with its entry, which commands ask for."""
    verdict = {None: "-", True: "ANOMALOUS", False: "ok"}[result["anomalous"]]
    score, threshold = figure(result["score"]), figure(result["threshold"])
    latency = f"{figure(result['latency_ms'], 0)} ms"
    phase, identity = _shown(result["phase"]), _shown(result["id"])
    entry = f"  {_shown(result['entry'])}" if result["anomalous"] else ""
    return f"{verdict:<9} {score:>8} / {threshold:<8} {latency:>9}  {phase:<11} {identity}{entry}"


def figure(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}" if abs(value) < 1e6 else f"{value:.3g}"


def _shown(text: str) -> str:
    """No longer than an id can be that a worker takes."""
    return printable(text if len(text) <= ID_LENGTH else f"{text[:ID_LENGTH]}...")
