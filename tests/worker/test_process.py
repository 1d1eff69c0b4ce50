import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from tests.conftest import PrivateRedis
from tests.worker.helpers import eventually
from tests.worker.playing import answered, send
from worker.failpoints import VARIABLE
from worker.line import LEARNING
from worker.streams.line_streams import LEARNING as LEARNING_GROUP
from worker.streams.line_streams import LineStreams


class Process:
    """`mhpc-worker run`, with its log; `read_from` has it read its configuration there."""

    def __init__(self, folder: Path, url: str, line: str, failpoint: str = "", read_from: Path | None = None) -> None:
        self.config = folder / "config.toml"
        self.config.write_text(
            f"""
            [redis]
            url = "{url}"
            [worker]
            name = "station-1"
            device = "cpu"
            [model]
            backbone = "resnet18"
            weights = "random:0"
            input_shape = [64, 64]
            bank_size = 200
            [snapshots]
            directory = "{folder / "snapshots"}"
            [http]
            port = 0
            [[lines]]
            name = "{line}"
            """
        )
        self.log = folder / "log"
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", "worker", "run", "--config", str(read_from or self.config)]
            environment = {**os.environ, **({VARIABLE: failpoint} if failpoint else {})}
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(text) for text in self.log.read_text().splitlines() if text.startswith("{")]

    def event(self, name: str) -> dict[str, Any]:
        """Wait for this event in the log."""

        def found() -> dict[str, Any]:
            assert self.process.poll() is None, self.log.read_text()
            return next((event for event in self.events() if event["event"] == name), {})

        return eventually(found)

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@pytest.fixture
def start(tmp_path: Path, private_redis: PrivateRedis, line: str) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(failpoint: str = "", read_from: Path | None = None) -> Process:
        started.append(Process(tmp_path, private_redis.url, line, failpoint, read_from))
        return started[-1]

    yield start
    for process in started:
        process.process.kill()
        process.process.wait()


def test_a_process_drains_on_sigterm_resumes_and_ends_even_without_redis(
    start: Callable[[], Process], private_redis: PrivateRedis, line: str
) -> None:
    client = redis.Redis(port=private_redis.port, protocol=2)
    streams = LineStreams(client, line)
    first = start()
    port = first.event("started")["port"]
    assert httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=30).text == "ok\n"
    send(client, line, 1, 12)
    answered(client, line, 12)
    eventually(lambda: streams.backlog(LEARNING_GROUP).pending == 3)
    assert streams.state()["model"] == ""
    assert first.end(signal.SIGTERM) == 0
    assert first.events()[-1]["event"] == "stopped"
    assert streams.backlog(LEARNING_GROUP).pending == 0
    assert streams.state()["applied_through"] == streams.last_id()
    eventually(lambda: not client.exists(streams.lease))

    second = start()
    opened = second.event("line opened")
    assert (opened["images"], opened["phase"], opened["epoch"]) == (12, LEARNING, 2)
    private_redis.kill()
    second.event("Redis is not reached; trying again for ever")
    assert second.end(signal.SIGINT) == 0
    assert "Traceback" not in second.log.read_text()


def test_a_lost_device_ends_the_process_with_its_code_and_nothing_is_lost(
    start: Callable[..., Process], private_redis: PrivateRedis, line: str
) -> None:
    client = redis.Redis(port=private_redis.port, protocol=2)
    first = start("forward:lost:3")
    first.event("started")
    send(client, line, 1, 40)
    assert first.process.wait(60) == 5
    last = first.log.read_text().splitlines()[-1]
    assert "the device is gone; start the worker again" in last
    start().event("line opened")
    assert answered(client, line, 40)


def test_sighup_has_the_lines_read_anew(start: Callable[..., Process], private_redis: PrivateRedis, line: str) -> None:
    client = redis.Redis(port=private_redis.port, protocol=2)
    process = start()
    process.event("started")
    more = f"{line}-more"
    process.config.write_text(process.config.read_text() + f'[[lines]]\nname = "{more}"\n')
    process.process.send_signal(signal.SIGHUP)
    assert process.event("configuration")["opened"] == [more]
    send(client, more, 1, 4)
    assert answered(client, more, 4)
    assert process.end(signal.SIGTERM) == 0


def reader_of(pipe: Path) -> int:
    """A descriptor to write to whoever reads a named pipe; 0 while nobody does."""
    try:
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return 0


def test_sighup_while_a_process_starts_has_the_lines_read_anew_once_it_runs(
    start: Callable[..., Process], line: str, tmp_path: Path
) -> None:
    pipe, more = tmp_path / "pipe", f"{line}-more"
    os.mkfifo(pipe)
    process = start(read_from=pipe)
    with os.fdopen(eventually(lambda: reader_of(pipe)), "w") as file:
        process.process.send_signal(signal.SIGHUP)  # while it waits for its configuration
        file.write(process.config.read_text())
    process.event("started")
    with os.fdopen(eventually(lambda: reader_of(pipe)), "w") as file:
        file.write(process.config.read_text() + f'[[lines]]\nname = "{more}"\n')
    assert process.event("configuration")["opened"] == [more]
    assert process.end(signal.SIGTERM) == 0


def test_a_folder_for_versions_that_cannot_be_written_is_named_with_the_remedy_and_stops_nothing(
    start: Callable[[], Process], private_redis: PrivateRedis, line: str, tmp_path: Path
) -> None:
    folder = tmp_path / "snapshots"
    folder.symlink_to("/proc/not-mounted")
    process, client = start(), redis.Redis(port=private_redis.port, protocol=2)
    told = f"snapshots.directory {folder} cannot be written: [Errno 17] File exists: '{folder}'; "
    told += "a file stands where a folder belongs: move it away, or, where it is a link, mount what it leads to"
    assert process.event(told)["level"] == "error"
    send(client, line, 1, 4)
    assert answered(client, line, 4)
    assert process.end(signal.SIGTERM) == 0
