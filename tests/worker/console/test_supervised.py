"""What a service manager hears of the console's process."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.worker.helpers import eventually
from tests.worker.runtime.test_notify import WATCHDOG_SECONDS, Manager, halted
from worker.configuration import load_settings
from worker.console.server import serve
from worker.console.supervised import SupervisedServer


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_before_it_serves_ends_it_all_the_same(
    number: signal.Signals, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = SupervisedServer.run

    def signalled(self: SupervisedServer, sockets: list[socket.socket] | None = None) -> None:
        signal.raise_signal(number)
        run(self, sockets)

    monkeypatch.setattr(SupervisedServer, "run", signalled)
    before = signal.getsignal(number)
    serve(load_settings(None, {"redis": {"url": redis_url}, "console": {"port": 0}}, {}))
    assert signal.getsignal(number) is before
