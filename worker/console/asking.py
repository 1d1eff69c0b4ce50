"""What changes something: commands to a line, logging in, logging out."""

import json
from collections.abc import Callable
from typing import Any

import redis
import structlog
from anyio import CapacityLimiter, to_thread
from starlette.requests import ClientDisconnect, Request

from worker.console.access import Who
from worker.console.lines import Watched
from worker.console.source import AWAY
from worker.console.text import cut
from worker.errors import ConfigurationError
from worker.streams.control import Reply
from worker.views import command

BODY_BYTES = 16_384
ANSWER_SECONDS = 30.0
ASKING = 8  # commands at a time: each may wait for its answer

log = structlog.get_logger()


class BadRequestError(Exception):
    """A body that cannot be used; the text says what was expected."""


async def body_of(request: Request) -> bytes:
    """The body, if it is of a size that a command or a login has. Raises BadRequestError."""
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > BODY_BYTES:
                raise BadRequestError(f"the body is longer than {BODY_BYTES} bytes")
    except ClientDisconnect:
        raise BadRequestError("the body broke off") from None
    return body


async def asked(request: Request) -> tuple[str, list[str]]:
    """The name of a command and its arguments. Raises BadRequestError."""
    try:
        message = json.loads(await body_of(request))
    except (ValueError, RecursionError):
        raise BadRequestError('expected JSON: {"name": "normal", "args": ["ENTRY", "ID"]}') from None
    name, args = (message.get("name"), message.get("args", [])) if isinstance(message, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(args, list) or not all(isinstance(arg, str) for arg in args):
        raise BadRequestError('expected {"name": TEXT, "args": [TEXT, ...]}')
    if any("\ud800" <= char <= "\udfff" for char in "".join((name, *args))):
        raise BadRequestError("half of a surrogate pair is no text; expected UTF-8")
    return name, args


class Asking:
    """Sends commands, some at a time, so that waiting for answers keeps nobody from looking."""

    def __init__(self, closing: Callable[[], bool]) -> None:
        self._threads = CapacityLimiter(ASKING)
        self._closing = closing

    async def tell(self, line: Watched, who: Who, name: str, args: list[str]) -> tuple[int, Reply]:
        """Send a command and wait for the keeper's answer; the status of the HTTP answer, and what it says."""

        def told() -> Reply:
            return command(line.streams.client, line.name, name, args, who.name, ANSWER_SECONDS, self._closing)

        what = {"line": line.name, "name": name, "args": [cut(arg) for arg in args], "by": who.name}
        log.info("asking", **what)  # now: whatever becomes of the console or of Redis, it is known who it was
        try:
            reply = await to_thread.run_sync(told, limiter=self._threads)
            status = 200
        except ConfigurationError as error:
            status, reply = 400, Reply(False, cut(str(error), 400))
        except redis.exceptions.NoPermissionError as error:
            status, reply = 403, Reply(False, _right_missing(line, error))
        except (redis.RedisError, *AWAY) as error:
            status, reply = 503, Reply(False, f"Redis did not take it, or its answer was lost: {error}")
        log.info("asked", **what, **reply._asdict())
        line.journal.forget()
        line.status.forget()
        return status, reply


def _right_missing(line: Watched, error: Any) -> str:
    return (
        f"the console's Redis user may look but not tell {line.name} anything: {error}. "
        "Let the console log in as `operator` of deploy/redis/users.acl"
    )
