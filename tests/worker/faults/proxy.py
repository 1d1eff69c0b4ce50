"""A way to a Redis server that breaks when it is told to: cut, silent, slow, late, losing the reply to a command."""

import queue
import socket
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

PASSES, CUT, HALF_OPEN, HELD = "passes", "cut", "half open", "held"


@dataclass
class Loss:
    """So many of a command, where each of `containing` is one of its arguments, whose replies are to be lost."""

    command: bytes
    containing: frozenset[bytes]
    times: int

    def wants(self, request: list[bytes]) -> bool:
        return self.times > 0 and request[0].upper() == self.command and self.containing <= set(request)


class Link:
    """One connection of a client, and its own to the server."""

    def __init__(self, caller: socket.socket, server: socket.socket) -> None:
        self.ends = caller, server
        self.requests, self.replies = caller.makefile("rb"), server.makefile("rb")
        self.losses: queue.SimpleQueue[Loss | None] = queue.SimpleQueue()  # per request sent on, in order
        self.swallowed = self.lost = False  # whether a request, or a reply, was kept back

    def close(self) -> None:
        for end in self.ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Proxy:
    """Listens on `port`, and passes on to the server at `target`, on the loopback.

    It follows RESP2 and RESP3 with a reply to each request, as all but subscriptions are. `dropped` counts the replies
    that were lost, `refused` the connections that a cut has turned away, `accepted` the others.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.dropped = self.refused = self.accepted = 0
        self._mode, self._delay = PASSES, 0.0
        self._losses: list[Loss] = []
        self._hold: Loss | None = None  # what begins it
        self._mended = threading.Event()
        self._links: set[Link] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    # -- what breaks -------------------------------------------------------------------------------------------------

    def mend(self) -> None:
        """Pass all on, at once; a connection that something was swallowed of ends."""
        with self._lock:
            self._mode, self._delay, self._losses, self._hold = PASSES, 0.0, [], None
            self._mended.set()
            links = [link for link in self._links if link.swallowed]
        _close(links)

    def cut(self) -> None:
        """Close all connections, and each new one until `mend`."""
        with self._lock:
            self._mode = CUT
            links = list(self._links)
        _close(links)

    def half_open(self) -> None:
        """Take what comes and answer nothing, on old and new connections, until `mend`."""
        with self._lock:
            self._mode = HALF_OPEN

    def hold(self, command: bytes, *containing: bytes) -> None:
        """From the next such command on keep what comes on its way; `mend` delivers it, late, whoever still waits."""
        with self._lock:
            self._hold = Loss(command.upper(), frozenset(containing), 1)
            self._mended.clear()

    @property
    def holds(self) -> bool:
        """Whether the command came that it waits for."""
        return self._mode == HELD

    def delay(self, seconds: float) -> None:
        """Hold each reply back for so long, until `mend`."""
        self._delay = seconds

    def drop_reply(self, command: bytes, *containing: bytes, times: int = 1) -> None:
        """Pass on the next such commands, alone or in a pipeline, and close the connection instead of replying.

        Of scripts, whose commands are all EVALSHA, one is told by its arguments.
        """
        with self._lock:
            self._losses.append(Loss(command.upper(), frozenset(containing), times))

    def close(self) -> None:
        self.cut()
        self._mended.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    # -- what passes -------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        with suppress(OSError):  # closed
            while True:
                caller = self._listener.accept()[0]
                if self._mode == CUT:
                    self.refused += 1
                    caller.close()
                else:
                    threading.Thread(target=self._connect, args=[caller], daemon=True).start()

    def _connect(self, caller: socket.socket) -> None:
        with caller, suppress(OSError), socket.create_connection(("127.0.0.1", self.target)) as server:
            link = Link(caller, server)
            with self._lock:
                if self._mode == CUT:  # since it was accepted
                    return
                self._links.add(link)
                self.accepted += 1
            down = threading.Thread(target=self._pass_replies, args=[link], daemon=True)
            down.start()
            self._pass_requests(link)
            down.join()
            with self._lock:
                self._links.discard(link)

    def _pass_requests(self, link: Link) -> None:
        with suppress(OSError, ValueError):
            while request := read_request(link.requests):
                sent, arguments = request
                with self._lock:
                    if self._mode == HALF_OPEN:
                        link.swallowed = True
                        continue
                    if self._hold is not None and self._hold.wants(arguments):
                        self._mode = HELD
                    held = self._mode == HELD
                if held:
                    self._mended.wait()
                with self._lock:
                    loss = next((loss for loss in self._losses if loss.wants(arguments)), None)
                    if loss is not None:
                        loss.times -= 1
                link.losses.put(loss)
                link.ends[1].sendall(sent)
        if link.lost:
            with suppress(OSError):
                link.ends[1].shutdown(socket.SHUT_WR)  # the server carries out what it was sent, and ends
        else:
            link.close()

    def _pass_replies(self, link: Link) -> None:
        with suppress(OSError, ValueError):
            while reply := read_reply(link.replies):
                if link.losses.get() is not None:
                    self.dropped += 1
                    link.lost = True
                    link.ends[0].shutdown(socket.SHUT_RDWR)  # what the caller has sent already is still passed on
                    while read_reply(link.replies):
                        pass
                    break
                time.sleep(self._delay)
                with self._lock:
                    if self._mode == HALF_OPEN:
                        link.swallowed = True
                        continue
                link.ends[0].sendall(reply)
        link.close()


def _close(links: Iterable[Link]) -> None:
    for link in links:
        link.close()


def read_request(stream: BinaryIO) -> tuple[bytes, list[bytes]] | None:
    """The next request's bytes and its arguments; None at the end."""
    head = stream.readline()
    if not head.endswith(b"\r\n"):
        return None
    if not head.startswith(b"*"):
        raise ValueError(f"{head!r:.40} begins no request; clients send arrays")
    parts, arguments = [head], []
    for _ in range(int(head[1:])):
        size = stream.readline()
        argument = stream.read(int(size[1:]) + 2)
        parts += [size, argument]
        arguments.append(argument[:-2])
    return b"".join(parts), arguments


def read_reply(stream: BinaryIO) -> bytes:
    """The next reply's bytes; none at the end."""
    head = stream.readline()
    if not head.endswith(b"\r\n"):
        return b""
    kind, size = head[:1], head[1:-2]
    if kind in (b"$", b"=") and size != b"-1":
        return head + stream.read(int(size) + 2)
    if kind in (b"*", b"~", b"%") and size != b"-1":
        return head + b"".join(read_reply(stream) for _ in range(int(size) * (2 if kind == b"%" else 1)))
    return head
