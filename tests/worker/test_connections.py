"""Whoever reaches the port has few connections, and for a while."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tests.worker.helpers import eventually
from worker import connections
from worker.connections import BoundedConnection
from worker.http import HttpServer
from worker.settings import HttpSettings

WHOLE = b"GET /probe HTTP/1.1\r\nHost: a\r\n\r\n"
HALF = b"POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf"
SLOW = b"GET /slow HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
Opened = Callable[[bytes], socket.socket]


@pytest.fixture
def may_answer() -> Iterator[threading.Event]:
    may_answer = threading.Event()
    yield may_answer
    may_answer.set()


@pytest.fixture
def server(may_answer: threading.Event) -> Iterator[HttpServer]:
    def slow(_: Request) -> PlainTextResponse:
        may_answer.wait(60)
        return PlainTextResponse("at last")

    def probe(_: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    async def body(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    def large(_: Request) -> PlainTextResponse:
        return PlainTextResponse("x" * 2**24)

    routes = [
        Route("/slow", slow),
        Route("/probe", probe),
        Route("/large", large),
        Route("/body", body, methods=["POST"]),
    ]
    server = HttpServer(HttpSettings(port=0), Starlette(routes=routes))
    server.start()
    yield server
    may_answer.set()
    server.stop()


@pytest.fixture
def opened(server: HttpServer) -> Iterator[Opened]:
    with ExitStack() as stack:

        def opened(sent: bytes = b"") -> socket.socket:
            caller = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 60))
            caller.sendall(sent)
            return caller

        yield opened


def until_closed(caller: socket.socket) -> bytes:
    """All that comes, up to the end of the connection, which a system may tell as a reset."""
    came = b""
    try:
        while data := caller.recv(1 << 16):
            came += data
    except ConnectionResetError:
        pass
    return came


def open_now(server: HttpServer) -> int:
    return len(server._server.server_state.connections)


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /probe HTTP/1.1\r\nHost:", HALF, WHOLE + b"GET /pro", WHOLE + HALF],
    ids=["nothing", "half a head", "half a body", "half of a second", "half of a second's body"],
)
def test_who_sends_no_whole_request_is_let_go(
    server: HttpServer, opened: Opened, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.2)
    until_closed(opened(sent))
    eventually(lambda: open_now(server) == 0)


def test_who_has_asked_is_answered_however_long_it_takes(
    server: HttpServer, opened: Opened, may_answer: threading.Event
) -> None:
    asked = opened(SLOW)
    eventually(lambda: server._server.server_state.tasks)
    (connection,) = server._server.server_state.connections
    assert isinstance(connection, BoundedConnection)
    eventually(lambda: connection.timeout_request is None)
    may_answer.set()
    assert until_closed(asked).endswith(b"at last")
    eventually(lambda: open_now(server) == 0)


def test_of_too_many_the_longest_silent_make_room_and_a_probe_gets_through(
    server: HttpServer, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BoundedConnection, "MOST", 4)
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 600)
    asked = opened(WHOLE)
    eventually(lambda: asked.recv(1000).endswith(b"ok"))
    silent = [opened(b"GET /probe HTTP/1.1\r\n") for _ in range(9)]
    for caller in [asked, *silent[:5]]:
        assert until_closed(caller) == b""
    eventually(lambda: open_now(server) == 4)
    assert httpx.get(f"http://127.0.0.1:{server.port}/probe", timeout=60).text == "ok"
    silent[-1].sendall(b"Host: a\r\nConnection: close\r\n\r\n")
    assert until_closed(silent[-1]).endswith(b"ok")


def test_who_does_not_read_the_answer_is_let_go_and_makes_room(
    server: HttpServer, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BoundedConnection, "MOST", 4)
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 600)
    for _ in range(9):
        opened(WHOLE.replace(b"probe", b"large"))
    now = server._server.server_state.connections
    eventually(lambda: len(now) == 4 and all(each.flow.write_paused for each in now))  # type: ignore[union-attr]  # each has a flow by now
    assert httpx.get(f"http://127.0.0.1:{server.port}/probe", timeout=60).text == "ok"
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.2)
    for _ in range(3):
        opened(WHOLE.replace(b"probe", b"large"))
    eventually(lambda: open_now(server) <= 3)


def test_where_all_are_being_answered_one_more_is_refused_until_they_are(
    server: HttpServer, opened: Opened, may_answer: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BoundedConnection, "MOST", 4)
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 600)
    asked = [opened(SLOW) for _ in range(4)]
    eventually(lambda: len(server._server.server_state.tasks) == 4)
    assert until_closed(opened(b"")) == b""
    may_answer.set()
    for caller in asked:
        assert until_closed(caller).endswith(b"at last")
    eventually(lambda: open_now(server) == 0)
    assert httpx.get(f"http://127.0.0.1:{server.port}/probe", timeout=60).text == "ok"
