"""A camera, and what comes of its pictures."""

from typing import Any

from tests.worker.helpers import eventually, item, message
from worker.message import decode_result
from worker.streams.line_streams import LineStreams


def send(client: Any, line: str, first: int, last: int, batch: int = 4) -> None:
    """Pictures with the ids first to last."""
    for start in range(first, last + 1, batch):
        items = [item(str(number)) for number in range(start, min(start + batch, last + 1))]
        client.xadd(f"mhpc:{{{line}}}:images", {"batch": message(*items)})


def results(client: Any, line: str) -> list[dict[str, Any]]:
    return [decode_result(fields[b"result"]) for _, fields in client.xrange(f"mhpc:{{{line}}}:scores")]


def answered(client: Any, line: str, count: int) -> list[dict[str, Any]]:
    """The results, once there are so many."""
    return eventually(lambda: found if len(found := results(client, line)) >= count else [])


def in_phase(client: Any, line: str, phase: str) -> bool:
    return LineStreams(client, line).state().get("phase") == phase
