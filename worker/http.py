"""/metrics, /healthz and /readyz, on a thread beside the work loop."""

import socket
import threading
from collections.abc import Callable

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from worker.connections import BACKLOG, BoundedConnection
from worker.errors import ConfigurationError
from worker.settings import HttpSettings

STOP_SECONDS = 2

Probe = Callable[[], str]  # "" for well, else what is the matter


def make_app(registry: CollectorRegistry, alive: Probe, ready: Probe, reached: Probe) -> Starlette:
    """The three pages; a probe answers 200 "ok", or 503 with what is the matter.

    `/readyz?lines=0` goes by `reached` alone: what is the matter with one line is no reason to keep a whole fleet from
    being updated.
    """

    def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    def answer(probe: Probe) -> Response:
        problem = probe()
        return PlainTextResponse(f"{problem or 'ok'}\n", 503 if problem else 200)

    def healthz(_: Request) -> Response:
        return answer(alive)

    def readyz(request: Request) -> Response:
        return answer(reached if request.query_params.get("lines") == "0" else ready)

    return Starlette(routes=[Route("/metrics", metrics), Route("/healthz", healthz), Route("/readyz", readyz)])


class HttpServer:
    """uvicorn on its own thread."""

    def __init__(self, settings: HttpSettings, app: ASGIApp) -> None:
        self._socket = bound(settings)
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            app,
            http=BoundedConnection,
            backlog=BACKLOG,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), name="http", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(STOP_SECONDS)
        self._socket.close()


def bound(settings: HttpSettings, table: str = "http") -> socket.socket:
    """A listening socket's address taken; raises ConfigurationError where it cannot be."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((settings.host, settings.port))
        bound.listen()  # with SO_REUSEADDR two may bind a port, but not listen on it
    except OSError as error:
        bound.close()
        raise ConfigurationError(
            f"{table}: {settings.host}:{settings.port} cannot be bound ({error.strerror or error}); "
            f"choose another {table}.port, or 0 for any free one"
        ) from None
    return bound
