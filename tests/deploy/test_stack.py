"""Redis, worker and console as compose.yaml configures them, but for folders and ports: they work together."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from tests.conftest import free_port
from tests.deploy.composing import check_of, healthy, redis_of, with_secrets
from tests.worker.helpers import eventually
from tests.worker.playing import answered, send

LINE = "press-3"


class Stack:
    """What runs, by its ports."""

    def __init__(self, folder: Path) -> None:
        self.deploy = with_secrets(folder)
        self.folder = folder
        self.worker, self.console = free_port(), free_port()
        self.redis = 0

    def client(self, user: str) -> Any:
        return redis.Redis(
            port=self.redis, username=user, password=self.secret(f"redis_{user}"), protocol=2, driver_info=None
        )

    def secret(self, name: str) -> str:
        return (self.deploy / "secrets" / name).read_text().split()[-1]

    def well(self, service: str) -> bool:
        told, here = ("9108", self.worker) if service == "worker" else ("9109", self.console)
        return healthy(check_of(service), {f":{told}/": f":{here}/"})

    @contextmanager
    def process(self, command: str) -> Iterator["subprocess.Popen[bytes]"]:
        """`mhpc-worker COMMAND` by the configuration of the service of that name."""
        name = "worker" if command == "run" else command
        text = (self.deploy / "config" / f"{name}.toml").read_text()
        for told, here in {
            "redis:6379": f"127.0.0.1:{self.redis}",
            "/run/secrets": f"{self.deploy}/secrets",
            '"0.0.0.0"': '"127.0.0.1"',
            "/var/lib/mhpc": str(self.folder),
            "port = 9108": f"port = {self.worker}",
            "port = 9109": f"port = {self.console}",
        }.items():
            text = text.replace(told, here)
        config = self.folder / f"{name}.toml"
        config.write_text(text)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MHPC_")}
        arguments = [sys.executable, "-m", "worker", command, "--config", str(config)]
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(arguments, stdout=log, stderr=log, env=environment)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    stack, data = Stack(tmp_path), tmp_path / "data"
    data.mkdir()
    with ExitStack() as running:
        stack.redis, server = running.enter_context(redis_of(stack.deploy, data))
        eventually(lambda: server.poll() is None and (data / "appendonlydir").exists())
        for command in ("run", "console"):
            running.enter_context(stack.process(command))
        for service in ("worker", "console"):
            eventually(lambda service=service: stack.well(service))  # type: ignore[misc]  # binds the loop's
        yield stack
        server.kill()
        server.wait()
        for service in ("worker", "console"):
            eventually(lambda service=service: not stack.well(service))  # type: ignore[misc]  # mypy sees no default's type


def test_a_part_that_a_camera_adds_is_answered_and_shown_each_by_its_own_rights(stack: Stack) -> None:
    send(stack.client("producer"), LINE, 1, 8)
    assert [result["id"] for result in answered(stack.client("reader"), LINE, 8)] == list(map(str, range(1, 9)))
    page = f"http://127.0.0.1:{stack.console}"
    assert LINE in httpx.get(page, timeout=30).text
    paused = {"name": "pause", "args": []}
    commands = f"{page}/lines/{LINE}/commands"
    assert httpx.post(commands, json=paused, timeout=30).status_code == 401
    bearer = {"authorization": f"Bearer {stack.secret('console_tokens')}"}
    told = httpx.post(commands, json=paused, headers=bearer, timeout=60)
    assert (told.status_code, told.json()["ok"]) == (200, True)
