"""A live page to ask, and a line with results, parts in review and commands to look at."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from typing import Any

import httpx
import numpy as np
import redis

from tests.worker.helpers import encoded, picture
from worker.console.access import Access
from worker.console.app import make_app
from worker.http import HttpServer
from worker.message import Image, Result, encode_result, heat_maps
from worker.settings import HttpSettings, Settings
from worker.streams.line_streams import ANSWERING, LineStreams
from worker.streams.review import review_part

TOKEN = "ann-has-this-token"  # noqa: S105 - of these tests alone
BEARER = {"authorization": f"Bearer {TOKEN}"}
MODEL = "0000000001-0000000002"

# As the gate does: the page takes a result and a part in review for one only if they came at once.
AT_ONCE = (
    "return {redis.call('XADD', KEYS[1], '*', 'result', ARGV[1]), redis.call('XADD', KEYS[2], '*', unpack(ARGV, 2))}"
)

Event = tuple[str, Any]


class Site:
    """The page on a port of its own, and a browser's manners towards it."""

    def __init__(self, settings: Settings) -> None:
        self.access = Access(settings.console, 1)
        self.server = HttpServer(HttpSettings(port=0), make_app(settings, self.access))
        self.url = f"http://127.0.0.1:{self.server.port}"
        self.browser = httpx.Client(base_url=self.url, timeout=60)

    def __enter__(self) -> "Site":
        self.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.browser.close()
        self.server.stop()

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.browser.get(path, **options)

    def log_in(self) -> None:
        assert self.browser.post("/login", data={"token": TOKEN}).status_code == 303

    def tell(self, line: str, name: str, *args: str, headers: dict[str, str] | None = None) -> httpx.Response:
        body = {"name": name, "args": list(args)}
        return self.browser.post(f"/lines/{line}/commands", json=body, headers=BEARER if headers is None else headers)

    @contextmanager
    def events(self, path: str) -> Iterator[Iterator[Event]]:
        """What the page is told, event by event."""
        with self.browser.stream("GET", path) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            yield events_of(answer.iter_lines())


def events_of(lines: Iterator[str]) -> Iterator[Event]:
    """What an event stream says by these lines."""
    name = ""
    for text in lines:
        if text.startswith("event: "):
            name = text.removeprefix("event: ")
        elif text.startswith("data: "):
            yield name, json.loads(text.removeprefix("data: "))


def first(events: Iterator[Event], name: str, seconds: float = 60) -> Any:
    """What the first event of this name carries."""
    deadline = time.monotonic() + seconds
    for found, value in events:
        if found == name:
            return value
        assert time.monotonic() < deadline
    raise AssertionError("the stream ended")


def tags_of(page: httpx.Response) -> list[tuple[str, dict[str, str | None]]]:
    """Tags of a page with their attributes, as a browser would read them: text may say anything."""
    found = list[tuple[str, dict[str, str | None]]]()

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            found.append((tag, dict(attributes)))

    Tags().feed(page.text)
    return found


def fastest(attempt: Callable[[], float], tries: int = 20) -> float:
    """The least seconds that an attempt took; they end with one under a second: a busy machine makes any one slow."""
    least = attempt()
    while least >= 1 and (tries := tries - 1):
        least = min(least, attempt())
    return least


class Filled:
    """A line as a worker leaves it in Redis; anything may be added."""

    def __init__(self, client: redis.Redis, line: str) -> None:
        self.client: Any = client
        self.line = line
        self.streams = LineStreams(client, line)
        self.streams.ensure_groups()
        self.state(phase="scoring", model=MODEL, threshold="2.0", rate="0.01", drift="0.25", progress="")
        self.client.set(self.streams.lease, "station-1#a", px=60_000)

    def state(self, **fields: str) -> None:
        self.client.hset(self.streams.state_key, mapping=fields)

    def result(self, identity: str = "a", score: float | None = 1.0, entry: str = "1-0", **changes: Any) -> str:
        """Publish a result; returns its key."""
        return self.put("scores", result=self.encoded_result(identity, score, entry, **changes))

    def encoded_result(self, identity: str, score: float | None, entry: str, **changes: Any) -> bytes:
        heat = None if score is None else np.linspace(0, 2 * score, 16, dtype=np.float32).reshape(4, 4)
        anomalous = None if score is None else score > 2.0
        known: dict[str, Any] = {
            "line": self.line, "entry": entry, "id": identity, "phase": "scoring", "model": MODEL, "score": score,
            "threshold": 2.0, "anomalous": anomalous, "provisional": False, "ts": 1.7e9, "latency_ms": 12.5,
            "map": heat, "meta": None,
        }  # fmt: skip
        fields = {**known, **changes}
        if fields["map"] is not None:
            (fields["map"],) = heat_maps(fields["map"][None])
        return encode_result(Result(**fields))

    def flagged(self, identity: str = "bad", score: float = 5.0, image: Image | None = None, **changes: Any) -> str:
        """Publish an anomalous result and put its part into review; returns the key there."""
        return self.both(identity, score, image, **changes)[1]

    def both(
        self, identity: str = "bad", score: float = 5.0, image: Image | None = None, **changes: Any
    ) -> tuple[str, str]:
        """The same; returns the result's key and the part's."""
        part = review_part("7-0", image or Image(identity, "png", encoded(picture())), "anomalous", score, 2.0, MODEL)
        fields = [each for field in part._asdict().items() for each in field]
        result = self.encoded_result(identity, score, "7-0", **changes)
        keys = self.client.eval(AT_ONCE, 2, self.streams.scores, self.streams.review, result, *fields)
        return keys[0].decode(), keys[1].decode()

    def reviewed(self, image: Image, score: float | None, why: str = "anomalous", learned: str = "") -> str:
        part = review_part("7-0", image, why, score, 2.0, MODEL, learned)
        return self.put("review", **part._asdict())

    def put(self, stream: str, **fields: Any) -> str:
        key: bytes = self.client.xadd(f"mhpc:{{{self.line}}}:{stream}", fields)
        return key.decode()

    def junk(self, stream: str, field: str) -> None:
        """What anybody may write there."""
        for value in (
            b"",
            b"\xc1",
            b"\x01",
            b"\x90",
            b"\x80",
            b"\x81\xa2id\x01",
            b"\x81\x91\x01\x02",
            b"\x81\xa2id\x91\x01",
        ):
            self.put(stream, **{field: value})
        self.put(stream, other=b"field")

    @property
    def lag(self) -> int:
        return int(self.streams.backlog(ANSWERING).pending)


def unanswered(filled: Filled) -> None:
    """An entry that somebody took and has not answered."""
    filled.put("images", batch=b"")
    assert filled.client.xreadgroup(ANSWERING, "somebody", {filled.streams.images: ">"})
