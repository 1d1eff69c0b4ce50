"""HTTP connections of which nobody holds too many: to the worker's pages, and to the console."""

import asyncio
from typing import cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_SECONDS = 10.0  # for one to be whole: for a first one, and for the rest of one, uvicorn waits for ever
BACKLOG = 64  # that are taken at once, before it is known how many are open; asyncio takes 2,048 of uvicorn's


class BoundedConnection(H11Protocol):
    """Ended where no request comes whole in time, or its answer is not read; MOST are open.

    Whoever reaches the port can open some, without a token, and they are taken from what the process may open: its
    Redis and its snapshots want some, too.
    """

    MOST = 64
    timeout_request: asyncio.TimerHandle | None = None  # while a request, or room for its answer, is waited for

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._wait_or_not()
        if len(self.connections) > self.MOST:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait_or_not()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_or_not()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._wait_or_not()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait_or_not()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_waiting()

    def _wait_or_not(self) -> None:
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY) and not self.flow.write_paused:
            self._stop_waiting()
        elif self.timeout_request is None:
            self.timeout_request = self.loop.call_later(REQUEST_SECONDS, self._end)

    def _stop_waiting(self) -> None:
        if self.timeout_request is not None:
            self.timeout_request.cancel()
            self.timeout_request = None

    def _make_room(self) -> None:
        """End the one that has been waited for longest; a probe asks at once. The new one, where all have asked."""
        connections = cast("set[BoundedConnection]", self.connections)
        waiting = {each: handle.when() for each in connections if (handle := each.timeout_request) is not None}
        min(waiting, key=waiting.__getitem__)._end()

    def _end(self) -> None:
        self._stop_waiting()
        self.transport.abort()
