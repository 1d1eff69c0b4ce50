"""uvicorn under a service manager."""

import socket

import uvicorn

from worker.runtime.notify import Notifier


class SupervisedServer(uvicorn.Server):
    """Tells the manager when it serves and when it stops; its own event loop feeds the watchdog.

    Raises:
        ConfigurationError: as Notifier does.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._manager = Notifier()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._manager.tell("READY=1")

    async def on_tick(self, counter: int) -> bool:
        self._manager.feed()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._manager.tell("STOPPING=1")
        await super().shutdown(sockets)
