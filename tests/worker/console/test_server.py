"""The page's process, up to where it would serve."""

import socket
from typing import Any

import pytest
import uvicorn

from worker.configuration import load_settings
from worker.connections import BoundedConnection
from worker.console import server
from worker.console.events import LOOKERS


def test_who_looks_has_six_connections_and_all_together_have_no_more(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[uvicorn.Config] = []

    class Served(uvicorn.Server):
        def run(self, sockets: list[socket.socket] | None = None) -> None:
            served.append(self.config)

    monkeypatch.setattr(server, "SupervisedServer", Served)
    server.serve(load_settings(None, {"redis": {"url": redis_url}, "console": {"port": 0}}, {}))
    (config,) = served
    connection: Any = config.http
    assert issubclass(connection, BoundedConnection)
    assert connection.MOST == 6 * LOOKERS
