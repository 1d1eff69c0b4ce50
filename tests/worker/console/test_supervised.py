"""What a service manager hears of the console's process."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.worker.helpers import eventually
from tests.worker.test_notify import WATCHDOG_SECONDS, Manager, halted


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify"))
    yield manager
    manager.socket.close()


def test_the_manager_hears_when_it_serves_that_its_event_loop_turns_and_when_it_stops(
    tmp_path: Path, manager: Manager, redis_url: str
) -> None:
    told = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": str(round(WATCHDOG_SECONDS * 1e6))}
    command = [sys.executable, "-m", "worker", "console", "--redis", redis_url, "--port", "0"]
    with subprocess.Popen(command, env={**os.environ, **told}, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            address = process.stdout.readline().split()[1].partition("?")[0]
            manager.hears("READY=1")
            assert httpx.get(f"{address}healthz", timeout=30).status_code == 200
            manager.hears("WATCHDOG=1")
            process.send_signal(signal.SIGSTOP)
            eventually(lambda: halted(process))
            assert manager.silent_for(WATCHDOG_SECONDS)
            process.send_signal(signal.SIGCONT)
            manager.hears("WATCHDOG=1")
            process.send_signal(signal.SIGTERM)
            manager.hears("STOPPING=1")
            assert process.wait(60) == 0
        finally:
            process.kill()
