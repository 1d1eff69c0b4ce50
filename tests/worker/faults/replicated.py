"""Servers with a replica that takes over, and a way to each master that keeps from it what others are told."""

import contextlib
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import redis

from tests.conftest import PrivateRedis, free_port, redis_executable
from tests.worker.faults.servers import Node, PrivateCluster, answers, private_cluster
from tests.worker.helpers import eventually

MASTER = "plant"
DOWN_MS = 5_000  # of silence, after which a sentinel takes a server for gone: a busy machine is silent for seconds
FAILOVER_MS = 10_000  # twice that after a vote without a winner, a sentinel tries again


class Relay:
    """Listens on `port`, and passes all bytes on to the server at `target`, on the loopback."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.withholds = False  # from replicas: what the master tells them is lost
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):  # closed
            while True:
                threading.Thread(target=self._pass_on, args=[self._listener.accept()[0]], daemon=True).start()

    def _pass_on(self, caller: socket.socket) -> None:
        is_replica = threading.Event()
        with caller, suppress(OSError), socket.create_connection(("127.0.0.1", self.target)) as server:
            down = threading.Thread(target=self._pass_down, args=[server, caller, is_replica], daemon=True)
            down.start()
            with suppress(OSError):
                while data := caller.recv(1 << 16):
                    if b"PSYNC" in data:
                        is_replica.set()
                    server.sendall(data)
            _end(server, caller)
            down.join()

    def _pass_down(self, server: socket.socket, caller: socket.socket, is_replica: threading.Event) -> None:
        with suppress(OSError):
            while data := server.recv(1 << 16):
                if not (self.withholds and is_replica.is_set()):
                    caller.sendall(data)
        _end(server, caller)


def _end(*sockets: socket.socket) -> None:
    for each in sockets:
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


class Failing:
    """A master that is to be killed, the way to it, and the replica that takes over."""

    def __init__(self, url: str, master: Any, way: Relay, replica: Any) -> None:
        self.url = url
        self.master, self.way, self.replica = master, way, replica

    def kill(self) -> None:
        self.master.kill()

    def wait_for_replica(self) -> None:
        """Until the replica has what the master has now."""
        offset = _replication(self.master.port)["master_repl_offset"]
        eventually(lambda: _replication(self.replica.port)["slave_repl_offset"] >= offset)

    @property
    def taken_over(self) -> bool:
        return bool(_replication(self.replica.port)["role"] == "master")


def _replication(port: int) -> dict[str, Any]:
    client: Any = redis.Redis(port=port)
    told: dict[str, Any] = client.info("replication")
    return told


def _follows(port: int) -> bool:
    return answers(port) and _replication(port).get("master_link_status") == "up"


@contextmanager
def watched_by_sentinels(folder: Path) -> Iterator[Failing]:
    """A master, its replica, and three sentinels, two of which must agree."""
    with ExitStack() as stack:
        servers = []
        for name in ("master", "replica"):
            (folder / name).mkdir(parents=True)
            servers.append(PrivateRedis(folder / name))
            stack.callback(servers[-1].kill)
        master, replica = servers
        way = stack.enter_context(contextlib.closing(Relay(master.port)))
        client: Any = redis.Redis(port=replica.port)
        client.replicaof("127.0.0.1", way.port)
        eventually(lambda: _follows(replica.port))
        ports = [stack.enter_context(_sentinel(folder, way.port)) for _ in range(3)]
        for port in ports:
            asked: Any = redis.Redis(port=port, protocol=2)
            eventually(lambda asked=asked: knows_all(asked))  # type: ignore[misc]  # mypy sees no default's type
        url = "redis+sentinel://" + ",".join(f"127.0.0.1:{port}" for port in ports) + f"/{MASTER}/0"
        yield Failing(url, master, way, replica)


def knows_all(sentinel: Any) -> bool:
    """The replica, and the two others."""
    return bool(sentinel.sentinel_slaves(MASTER)) and len(sentinel.sentinel_sentinels(MASTER)) == 2


@contextmanager
def _sentinel(folder: Path, master: int) -> Iterator[int]:
    port = free_port()
    configuration = folder / f"sentinel-{port}.conf"
    configuration.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {folder}\nsentinel monitor {MASTER} 127.0.0.1 {master} 2\n"
        f"sentinel down-after-milliseconds {MASTER} {DOWN_MS}\nsentinel failover-timeout {MASTER} {FAILOVER_MS}\n"
    )
    process = subprocess.Popen([redis_executable(), str(configuration), "--sentinel"], stdout=subprocess.DEVNULL)
    try:
        eventually(lambda: answers(port))
        yield port
    finally:
        process.kill()
        process.wait()


@contextmanager
def cluster_with_replica(folder: Path) -> Iterator[tuple[PrivateCluster, Failing]]:
    """A Cluster of three masters, the last of which has a replica; one of the others is asked first."""
    with private_cluster(folder, "--cluster-node-timeout", "2000") as cluster, ExitStack() as stack:
        master = cluster.nodes[-1]
        way = stack.enter_context(contextlib.closing(Relay(master.port)))
        master.restart("--cluster-announce-port", str(way.port))
        eventually(lambda: all(_announced(node, way.port) for node in cluster.nodes))
        cluster.wait()
        replica = cluster.join()
        replica.ask("CLUSTER REPLICATE", master.identity)
        eventually(lambda: _follows(replica.port))
        cluster.wait()
        yield cluster, Failing(cluster.url, master, way, replica)


def _announced(node: Node, port: int) -> bool:
    return any(port == master[1] for _, _, master, *_ in node.ask("CLUSTER SLOTS"))
