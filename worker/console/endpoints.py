"""What each page, picture, stream and button answers."""

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

import redis
from anyio import CapacityLimiter, to_thread
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse

from worker.console.access import CROSS_SITE, SESSION_SECONDS, Access, same_site
from worker.console.asking import Asking, asked, body_of
from worker.console.events import FLEET_SECONDS, TICK_SECONDS, FleetTurns, LineTurns, Lookers
from worker.console.lines import Lines, Watched
from worker.console.pages import Pages, part_values
from worker.console.parts import Kind, Part, find_part, image_of, neighbour
from worker.console.pictures import SIDES, Drawn, heat_map, picture
from worker.console.rows import largest_first, row
from worker.console.source import AWAY, Source, why_unread
from worker.errors import RejectedError
from worker.settings import Settings
from worker.streams.ids import is_entry_id

KEPT_SECONDS = 3600  # that a browser may keep a picture: what an entry holds never changes
KINDS: dict[str, Kind] = {"scores": "scores", "review": "review"}
ORDERS = ("newest", "largest")
GONE: dict[Kind, str] = {
    "scores": "Too old: this result is no longer kept, or the entry holds none.",
    "review": "Too old: review does not hold this part any more.",
}


class Console:
    """All that the endpoints share."""

    def __init__(self, settings: Settings, access: Access, closing: Callable[[], bool]) -> None:
        self.settings = settings
        self.access = access
        self.pages = Pages(access)
        self.source = Source(settings.redis)
        self.lines = Lines(self.source, [line.name for line in settings.lines])
        self.lookers = Lookers(closing)
        self.asking = Asking(closing)
        self.drawn = Drawn()
        self._reading = CapacityLimiter(12)
        self._parts = CapacityLimiter(2)  # each reads a picture in full
        self._drawing = CapacityLimiter(1)  # a picture of full size takes up to half of what the console may have

    # -- looking -----------------------------------------------------------------------------------------------------

    async def fleet(self, request: Request) -> Response:
        if "token" in request.query_params:
            return self.log_in(request, request.query_params["token"], "/")
        return self.pages.page(
            request, "fleet.html", rows=await self.read(lambda: [row(watched) for watched in self.lines.all.get()])
        )

    async def line(self, request: Request) -> Response:
        watched = await self.watched(request)
        if "token" in request.query_params:
            return self.log_in(request, request.query_params["token"], request.url.path)
        return self.pages.page(request, "line.html", row=await self.read(lambda: row(watched)))

    async def part(self, request: Request) -> Response:
        watched, kind, key = await self.watched(request), *_place(request)
        return await to_thread.run_sync(lambda: self._part(request, watched, kind, key), limiter=self._parts)

    def _part(self, request: Request, watched: Watched, kind: Kind, key: str) -> Response:
        order = request.query_params.get("order", ORDERS[0])
        part, newer, older = _beside(watched, kind, key, order)
        if part is None:
            return self.pages.message(request, 404, "This part is gone", GONE[kind])
        return self.pages.page(
            request, "part.html", line=watched.name, part=part_values(part, watched.recent.get()), newer=newer,
            older=older, order=order, state=row(watched)["state"],
        )  # fmt: skip

    async def picture(self, request: Request) -> Response:
        """The picture of a part: `thumb` or `full`."""
        watched, kind, key = await self.watched(request), *_place(request)
        size = request.path_params["size"]
        if size not in SIDES:
            raise HTTPException(404)

        def draw() -> bytes:
            limits = self.settings.limits
            return picture(image_of(watched.streams, _found(watched, kind, key), limits), size, limits)

        return await self.draw((watched.name, kind, key, size), draw, "image/jpeg")

    async def heat(self, request: Request) -> Response:
        """The heat map of a part, clear where it is as it should be."""
        watched, kind, key = await self.watched(request), *_place(request)

        def draw() -> bytes:
            return heat_map(_found(watched, kind, key).result or {})

        return await self.draw((watched.name, kind, key, "heat"), draw, "image/png")

    async def draw(self, of: tuple[str, ...], draw: Callable[[], bytes], media_type: str) -> Response:
        try:
            data = await to_thread.run_sync(lambda: self.drawn.get(of, draw), limiter=self._drawing)
        except RejectedError as error:
            return PlainTextResponse(f"{error}\n", 404)
        headers = {"cache-control": f"private, max-age={KEPT_SECONDS}"}
        return Response(data, media_type=media_type, headers=headers)

    async def fleet_events(self, request: Request) -> Response:
        return self.stream(FleetTurns(self.lines), FLEET_SECONDS)

    async def line_events(self, request: Request) -> Response:
        return self.stream(LineTurns(await self.watched(request)), TICK_SECONDS)

    def stream(self, turns: Any, seconds: float) -> Response:
        headers = {"x-accel-buffering": "no"}  # nginx is not to hold back what is live
        return StreamingResponse(self.lookers.stream(turns, seconds), media_type="text/event-stream", headers=headers)

    # -- changing ----------------------------------------------------------------------------------------------------

    async def tell(self, request: Request) -> Response:
        """A command to a line: JSON in, the keeper's answer out."""
        who = self.access.who(request)
        if refusal := self.access.refusal(request, who, request.headers.get("x-csrf-token", "")):
            return JSONResponse({"ok": False, "text": refusal[1]}, refusal[0])
        assert who is not None  # noqa: S101 - else it is refused
        watched = await self.watched(request)
        status, reply = await self.asking.tell(watched, who, *await asked(request))
        return JSONResponse({**reply._asdict(), "by": who.name}, status)

    async def login_page(self, request: Request) -> Response:
        return self.pages.page(request, "login.html", problem="", next=_within(request.query_params.get("next", "/")))

    async def login(self, request: Request) -> Response:
        """A form with `token`, and `next`, the page to go on to."""
        if not same_site(request):
            return self.pages.message(request, 403, "Refused", CROSS_SITE)
        form = parse_qs((await body_of(request)).decode(errors="replace"))
        return self.log_in(request, form.get("token", [""])[0].strip(), _within(form.get("next", ["/"])[0]))

    def log_in(self, request: Request, token: str, next_page: str) -> Response:
        if self.access.name_of(token) is None:
            return self.pages.page(request, "login.html", 401, problem="This token is not known.", next=next_page)
        answer = RedirectResponse(next_page, 303)
        forwarded = request.headers.get("x-forwarded-proto") if self.access.from_proxy(request) else None
        answer.set_cookie(
            self.access.cookie, self.access.session(token), max_age=SESSION_SECONDS, httponly=True,
            samesite="strict", secure="https" in (request.url.scheme, forwarded),
        )  # fmt: skip
        return answer

    async def logout(self, request: Request) -> Response:
        if not same_site(request):
            return self.pages.message(request, 403, "Refused", CROSS_SITE)
        answer = RedirectResponse("/", 303)
        answer.delete_cookie(self.access.cookie, httponly=True, samesite="strict")
        return answer

    # -- its own health ----------------------------------------------------------------------------------------------

    async def healthz(self, _: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(self, _: Request) -> Response:
        try:
            await self.read(lambda: self.source.client.ping())
        except (redis.RedisError, *AWAY) as error:
            return PlainTextResponse(f"{why_unread(error)}\n", 503)
        return PlainTextResponse("ok\n")

    # -- what they need ----------------------------------------------------------------------------------------------

    async def read(self, read: Callable[[], Any]) -> Any:
        """Redis is asked on a thread: the loop goes on."""
        return await to_thread.run_sync(read, limiter=self._reading)

    async def watched(self, request: Request) -> Watched:
        found: Watched = await self.read(lambda: self.lines.watched(request.path_params["line"]))
        return found


def _place(request: Request) -> tuple[Kind, str]:
    kind, key = request.path_params["kind"], request.path_params["key"]
    if kind not in KINDS or not is_entry_id(key):
        raise HTTPException(404)
    return KINDS[kind], key


def _found(watched: Watched, kind: Kind, key: str) -> Part:
    part = find_part(watched, kind, key)
    if part is None:
        raise RejectedError("lost", "too old: it is no longer kept")
    return part


def _beside(watched: Watched, kind: Kind, key: str, order: str) -> tuple[Part | None, str | None, str | None]:
    """A part, and the keys of those that the arrows lead to: before it, after it."""
    part = find_part(watched, kind, key)
    if kind == "review" and order == "largest":
        ranked = [p.key for p in largest_first(reversed(watched.index.get().parts))]
        place = ranked.index(key) if key in ranked else len(ranked)
        return part, ranked[place - 1] if 0 < place < len(ranked) else None, next(iter(ranked[place + 1 :]), None)
    return part, neighbour(watched.streams, kind, key, newer=True), neighbour(watched.streams, kind, key, newer=False)


def _within(path: str) -> str:
    """A page of this console to go on to; anything else would lead away."""
    inside = path.startswith("/") and not path.startswith(("//", "/\\"))
    return path if inside and path.isprintable() and path.isascii() else "/"
