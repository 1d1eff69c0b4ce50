"""`mhpc-worker console`: the page's process."""

import signal

import uvicorn

from worker.connections import BACKLOG, BoundedConnection
from worker.console.access import Access
from worker.console.app import make_app
from worker.console.events import LOOKERS
from worker.console.guard import is_loopback
from worker.console.supervised import SupervisedServer
from worker.http import bound
from worker.settings import Settings
from worker.streams.address import address
from worker.streams.client import first_answer

STOP_SECONDS = 3  # for lookers, and those who wait for a keeper's answer, to be told and let go


class LookersConnection(BoundedConnection):
    """A browser opens six, and a page that is live holds one of them."""

    MOST = 6 * LOOKERS


def serve(settings: Settings) -> None:
    """Serve the page until SIGTERM or Ctrl-C; its address is printed, with a token where one was made.

    Raises:
        ConfigurationError: the port is taken, or the tokens, redis.url or a file of [redis] cannot be used.
    """
    with first_answer(settings.redis):  # which is not waited for: the page tells while Redis is away
        address(settings.redis)
    listener = bound(settings.console, "console")
    port = listener.getsockname()[1]
    access = Access(settings.console, port)
    config = uvicorn.Config(
        make_app(settings, access, closing=lambda: server.should_exit),
        http=LookersConnection,
        backlog=BACKLOG,
        log_config=None,
        access_log=False,
        lifespan="off",
        proxy_headers=False,  # what a proxy says is believed in one place: access.py
        server_header=False,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    server = SupervisedServer(config)
    # uvicorn's own handler, so that a signal ends it before it serves, too; at its end uvicorn raises the signal again.
    before = {number: signal.signal(number, server.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        print(where(settings.console.host, port, access.one_time), flush=True)  # noqa: T201 - for who started it
        server.run([listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        listener.close()


def where(host: str, port: int, one_time: str) -> str:
    """Where the page is."""
    name = "127.0.0.1" if host in ("0.0.0.0", "::", "localhost") else f"[{host}]" if ":" in host else host  # noqa: S104 - compared
    page = f"http://{name}:{port}/"
    if not one_time:
        return f"Console: {page}"
    told = f"Console: {page}?token={one_time}\nNo console.tokens are set: who has this link may press buttons"
    return told if is_loopback(host) else f"{told}; others reach it, too: set console.tokens_file, and TLS before it"
