"""What holds for every answer: the host that was asked for, and headers that leave a browser no room for mischief."""

import ipaddress

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker.settings import ConsoleSettings

LOOPBACK = ("localhost", "127.0.0.1", "::1")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


def hosts_of(settings: ConsoleSettings) -> frozenset[str]:
    """Host names that a request may be for; none: any.

    A page elsewhere may have its own name point to the loopback (DNS rebinding): by that name nothing is shown.
    """
    if is_loopback(settings.host) or settings.hosts:
        return frozenset({*LOOPBACK, settings.host.lower(), *(host.lower() for host in settings.hosts)})
    return frozenset()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_name(header: str) -> str:
    """The name of a Host header, without port and brackets."""
    name = header.partition("]")[0].removeprefix("[") if header.startswith("[") else header.partition(":")[0]
    return name.lower()


class Guard:
    """Refuses hosts that are not ours, and puts HEADERS on every answer."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        asked = host_name(Headers(scope=scope).get("host", ""))
        if self.hosts and asked not in self.hosts:
            refused = PlainTextResponse(
                f"This console is not {asked[:80]!r}. If it is to be reached by that name, add it to console.hosts.\n",
                421,
            )
            await refused(scope, receive, guarded)
            return
        await self.app(scope, receive, guarded)
