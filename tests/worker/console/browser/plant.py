"""A plant with a live page: a worker and a console as processes of their own, over a real Redis."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import redis

from tests.worker.cli.test_console import console
from tests.worker.console.site import TOKEN, events_of, first
from tests.worker.helpers import eventually, message
from tests.worker.playing import in_phase, results, send
from tests.worker.station import stained
from worker.streams.line_streams import LineStreams

LEARN, CALIBRATE = 16, 24
NORMAL = LEARN + CALIBRATE + 4  # pictures that a line has seen when it scores


@dataclass(frozen=True)
class Plant:
    """Redis, the console's address, what it printed, and the lines: nothing is told to `shown`, so that stained parts
    stay anomalous there."""

    client: Any
    url: str
    output: Path
    shown: str
    story: str
    told: str

    def streams(self, line: str) -> LineStreams:
        return LineStreams(self.client, line)

    def begin(self, *lines: str) -> None:
        """Send what these lines learn and calibrate on, and wait until they score."""
        for line in lines:
            send(self.client, line, 1, NORMAL)
        for line in lines:
            eventually(partial(in_phase, self.client, line, "scoring"))

    def stain(self, line: str, identity: str, seed: int = 7, **changes: Any) -> dict[str, Any]:
        """Send a stained part; its result, once it is there."""
        item = {"id": identity, "format": "png", "data": stained(seed), **changes}
        entry = self.client.xadd(f"mhpc:{{{line}}}:images", {"batch": message(item)}).decode()
        return eventually(lambda: next((found for found in results(self.client, line) if found["entry"] == entry), {}))

    def known(self, line: str) -> None:
        """Wait until the console knows this line, of which it was not told."""
        eventually(lambda: httpx.get(f"{self.url}/lines/{line}", timeout=60).status_code == 200)

    def gallery(self, line: str) -> list[str]:
        """The keys of the parts in review that the console would show now."""
        with httpx.stream("GET", f"{self.url}/lines/{line}/events", timeout=60) as answer:
            return [part["key"] for part in first(events_of(answer.iter_lines()), "review")]

    def commands(self, line: str) -> int:
        """How many commands the line was ever sent."""
        return int(self.client.xlen(self.streams(line).control))


@contextmanager
def serving(folder: Path, config: Path, redis_url: str, *lines: str) -> Iterator[Plant]:
    """A console whose buttons `ann` may press; no worker yet."""
    tokens = json.dumps({"ann": TOKEN})
    with console(folder, "--config", str(config), MHPC_CONSOLE__TOKENS=tokens) as (_, output):
        found = re.search(r"http://127\.0\.0\.1:\d+", output.read_text())
        assert found, output.read_text()
        yield Plant(redis.Redis.from_url(redis_url, protocol=2), found[0], output, *lines)
