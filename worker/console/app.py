"""The application: its routes, and what is said where something went wrong."""

from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import redis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from worker.console.access import Access
from worker.console.asking import BadRequestError
from worker.console.endpoints import Console
from worker.console.guard import Guard, hosts_of
from worker.console.pages import Pages
from worker.console.source import AWAY, why_unread
from worker.errors import RejectedError
from worker.settings import Settings

STATIC = Path(str(files("worker.console").joinpath("static")))

Endpoint = Callable[[Request], Awaitable[Response]]
Handler = Callable[[Request, Exception], Awaitable[Response]]


def make_app(settings: Settings, access: Access, closing: Callable[[], bool] = lambda: False) -> ASGIApp:
    """The page for these settings; once `closing` says that it is to end, it keeps nobody."""
    console = Console(settings, access, closing)
    app = Starlette(routes=_routes(console), exception_handlers=_handlers(console.pages))
    return Guard(app, hosts_of(settings.console))  # outside of Starlette's own answer to what nobody thought of


def _routes(console: Console) -> list[Route | Mount]:
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
    return [
        *(Route(path, endpoint, methods=["GET"]) for path, endpoint in get.items()),
        *(Route(path, endpoint, methods=["POST"]) for path, endpoint in post.items()),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]


def _handlers(pages: Pages) -> dict[Any, Any]:
    """What is said in place of a page; to a button, as JSON."""

    def saying(status: int, heading: str, text: Callable[[Exception], str], retry: bool = False) -> Handler:
        async def say(request: Request, error: Exception) -> Response:
            if request.method == "POST":
                return JSONResponse({"ok": False, "text": text(error)}, status)
            return pages.message(request, status, heading, text(error), retry)

        return say

    away = saying(503, "Nothing to see at the moment", why_unread, retry=True)
    return {
        500: _broken,
        404: saying(404, "Nothing here", lambda _: "There is no such page."),
        RejectedError: saying(404, "No such line", lambda error: f"{error}."),
        BadRequestError: saying(400, "Not understood", str),
        redis.RedisError: away,
        **dict.fromkeys(AWAY, away),
    }


async def _broken(request: Request, _: Exception) -> Response:
    """Without a template: that may be what is broken. Starlette raises the error again, for the log."""
    text = "The console failed at this. Its log says how."
    if request.method == "POST":
        return JSONResponse({"ok": False, "text": text}, 500)
    return PlainTextResponse(f"{text}\n", 500)
