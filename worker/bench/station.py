"""A private Redis, a worker in its own process and the cameras before it, ended whatever happens."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from worker import views
from worker.bench.latency import Latency, latencies, redis_ms
from worker.bench.load import Flow
from worker.bench.options import BenchOptions, Plan, worker_config
from worker.bench.pictures import as_entries, read_parts
from worker.bench.probe import Page, Probe, Window
from worker.demo.processes import Child, free_port, private_redis, spawn, started_worker, wait_until_ready
from worker.errors import WorkerError
from worker.producer import connect
from worker.streams.ids import line_key
from worker.streams.line_streams import ANSWERING

SETTLE_SECONDS = 1.0  # after a load has begun, before anything is measured
PATIENCE_SECONDS = 300.0  # for what the worker is waited for
POLL_SECONDS = 0.1
PAGE_POLL_SECONDS = 0.5  # a page of many lines costs the worker some time
COMMAND_SECONDS = 120.0


@dataclass(frozen=True)
class Cameras:
    """A load that runs: the process that sends it, and how the worker under it is looked at."""

    process: Child
    probe: Probe


class Station:
    """One worker with its lines.

    Args:
        url: of its Redis.
        port: of its HTTP.
        worker: its process.
        lines: their names.
        folder: for logs.
        parts: file of the pictures.
        begun: monotonic seconds at which the worker was started.
    """

    def __init__(
        self, url: str, port: int, worker: Child, lines: tuple[str, ...], folder: Path, parts: Path, begun: float
    ) -> None:
        self.url = url
        self.client: Any = connect(url)
        self.port = port
        self.worker = worker
        self.lines = lines
        self.folder = folder
        self.parts = parts
        self.begun = begun

    @property
    def redis_pid(self) -> int:
        return int(self.client.info("server")["process_id"])

    @property
    def redis_used_bytes(self) -> int:
        return int(self.client.info("memory")["used_memory_peak"])

    def page(self) -> Page:
        return Probe(self.port, {}, self.results).page()

    def results(self) -> int:
        """Results of all lines so far."""
        asking = self.client.pipeline(transaction=False)
        for line in self.lines:
            asking.xlen(line_key(line, "scores"))
        return sum(asking.execute())

    def first_result(self) -> float:
        """Wait for the first result; returns the seconds since the worker was started."""
        self.wait(lambda: self.results() > 0, "the first result", poll=POLL_SECONDS / 10)
        return time.monotonic() - self.begun

    def wait(self, done: Callable[[], bool], what: str, poll: float = POLL_SECONDS) -> None:
        """Wait until `done`.

        Raises:
            WorkerError: the worker ended, or it took PATIENCE_SECONDS.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not done():
            self.worker.check()
            if time.monotonic() > deadline:
                text = f"waited {PATIENCE_SECONDS:.0f} s for {what}; the end of the worker's log:"
                raise WorkerError(f"{text}\n{self.worker.tail()}")
            time.sleep(poll)

    def wait_for_phase(self, phase: str) -> None:
        """Wait until all lines are in a phase."""

        def there() -> bool:
            return self.page().total("mhpc_line_phase", phase=phase) == len(self.lines)

        self.wait(there, f"phase {phase}", poll=PAGE_POLL_SECONDS)

    def wait_for_results(self, count: int) -> None:
        """Wait for so many more results of all lines together, as long as they come."""
        wanted = self.results() + count
        while (there := self.results()) < wanted:
            self.wait(partial(self._has_more_than, there), "a result")

    def _has_more_than(self, count: int) -> bool:
        return self.results() > count

    def wait_until_answered(self) -> None:
        """Wait until no entry of any line is unread or unanswered."""

        def answered(line: str) -> bool:
            key = line_key(line, "images")
            groups = {group["name"].decode(): group for group in self.client.xinfo_groups(key)}
            group, newest = groups[ANSWERING], self.client.xinfo_stream(key)["last-generated-id"]
            return bool(group["pending"] == 0 and group["last-delivered-id"] == newest)

        self.wait(lambda: all(answered(line) for line in self.lines), "all entries to be answered")

    def command(self, name: str) -> None:
        """Give the only line a command; raises WorkerError if it is refused."""
        reply = views.command(self.client, self.lines[0], name, [], "bench", COMMAND_SECONDS)
        if not reply.ok:
            raise WorkerError(f"the worker refused {name}: {reply.text}")

    @contextmanager
    def cameras(self, *flows: Flow) -> Iterator[Cameras]:
        """Let parts come for the length of the block."""
        command = [sys.executable, "-m", "worker.bench.load", self.url, str(self.parts)]
        child = spawn(
            "the camera", [*command, json.dumps([asdict(flow) for flow in flows])], self.folder / "camera.log"
        )
        try:
            pids = {"worker": self.worker.process.pid, "redis": self.redis_pid, "producer": child.process.pid}
            yield Cameras(child, Probe(self.port, pids, self.results))
            child.check()
        finally:
            child.stop()

    def window(self, flow: Flow, seconds: float) -> Window:
        """Measure under a load once it has settled."""
        with self.cameras(flow) as cameras:
            self.settle(cameras)
            return cameras.probe.window(self.worker, seconds)

    def settle(self, cameras: Cameras) -> None:
        """Wait until the load reaches the worker."""
        self.wait_for_results(1)
        time.sleep(SETTLE_SECONDS)

    def latency(self, line: str, seconds: float, *flows: Flow) -> Latency:
        """The latency on a line of what is added in so many seconds of a load that has settled."""
        with self.cameras(*flows) as cameras:
            self.settle(cameras)
            since, ends = redis_ms(self.client), time.monotonic() + seconds
            self.wait(lambda: time.monotonic() > ends, "the end of the measurement")
            until = redis_ms(self.client)
        self.wait_until_answered()
        return Latency.of(latencies(self.client, line, since, until))


@contextmanager
def station(folder: Path, options: BenchOptions, plan: Plan, parts: Path) -> Iterator[Station]:
    """Start a Redis, in it one picture for the first line, and a worker; it is not awaited.

    Raises:
        ConfigurationError: there is no redis-server, or the worker cannot be configured so.
    """
    folder.mkdir()
    with private_redis(folder) as url:
        port, config = free_port(), folder / "config.toml"
        config.write_text(worker_config(options, plan, url, port, folder), encoding="utf-8")
        client = connect(url)
        client.xadd(line_key(plan.lines[0], "images"), {"batch": as_entries(read_parts(parts)[:1], 1)[0]})
        client.close()
        begun = time.monotonic()
        with started_worker(config, folder / "worker.log") as worker:
            yield Station(url, port, worker, plan.lines, folder, parts, begun)


def wait_until_serving(at: Station) -> float:
    """Wait for the first result and for /readyz; returns the seconds from the worker's start to that result."""
    seconds = at.first_result()
    wait_until_ready(at.worker, at.port)
    return seconds
