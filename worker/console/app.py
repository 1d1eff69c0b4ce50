"""The application: its routes, and what is said where something went wrong."""

from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import Path

import redis
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from worker.console.access import Access
from worker.console.asking import BadRequestError
from worker.console.endpoints import Console
from worker.console.guard import Guard, hosts_of
from worker.console.source import AWAY, why_unread
from worker.errors import RejectedError
from worker.settings import Settings

STATIC = Path(str(files("worker.console").joinpath("static")))

Endpoint = Callable[[Request], Awaitable[Response]]


def make_app(settings: Settings, access: Access) -> Starlette:
    """The page for these settings."""
    console = Console(settings, access)

    async def not_found(request: Request, _: Exception) -> Response:
        return console.pages.message(request, 404, "Nothing here", "There is no such page.")

    async def no_line(request: Request, error: Exception) -> Response:
        if request.method == "POST":
            return JSONResponse({"ok": False, "text": str(error)}, 404)
        return console.pages.message(request, 404, "No such line", f"{error}.")

    async def away(request: Request, error: Exception) -> Response:
        text = why_unread(error)
        if request.method == "POST":
            return JSONResponse({"ok": False, "text": text}, 503)
        return console.pages.message(request, 503, "Nothing to see at the moment", text, retry=True)

    async def bad_request(_: Request, error: Exception) -> Response:
        return JSONResponse({"ok": False, "text": str(error)}, 400)

    part = "/lines/{line}/{kind}/{key}"
    get: dict[str, Endpoint] = {
        "/": console.fleet,
        "/events": console.fleet_events,
        "/login": console.login_page,
        "/healthz": console.healthz,
        "/readyz": console.readyz,
        "/lines/{line}": console.line,
        "/lines/{line}/events": console.line_events,
        part: console.part,
        part + "/heat.png": console.heat,
        part + "/{size}.jpg": console.picture,
    }
    post: dict[str, Endpoint] = {
        "/login": console.login,
        "/logout": console.logout,
        "/lines/{line}/commands": console.tell,
    }
    app = Starlette(
        routes=[
            *(Route(path, endpoint, methods=["GET"]) for path, endpoint in get.items()),
            *(Route(path, endpoint, methods=["POST"]) for path, endpoint in post.items()),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[Middleware(Guard, hosts=hosts_of(settings.console))],
        exception_handlers={
            404: not_found,
            RejectedError: no_line,
            BadRequestError: bad_request,
            redis.RedisError: away,
            **dict.fromkeys(AWAY, away),
        },
    )
    app.state.lookers = console.lookers
    return app
