"""Servers that keep what they confirmed, and a Cluster of them."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from redis.crc import key_slot

from tests.conftest import PrivateRedis, free_port, redis_executable
from tests.worker.helpers import eventually

SLOTS = 16_384
MASTERS = 3
BUS = 10_000  # so far above its port a node listens for the others
NODE_TIMEOUT_MS = 60_000  # a node that but stands still is not given up by the others


def node_port() -> int:
    """A free one for a node of a Cluster, with the one where it listens for the others."""
    while not _is_free((port := free_port()) + BUS):
        pass
    return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):  # taken; beyond the last one
            return False
    return True


class DurableRedis(PrivateRedis):
    """Each write is on disk before it is confirmed: what a kill takes is what nobody was told of."""

    def start(self) -> None:
        address = ["--port", str(self.port), "--bind", "127.0.0.1"]
        durable = ["--save", "", "--appendonly", "yes", "--appendfsync", "always", "--dir", str(self.folder)]
        self.process = subprocess.Popen([redis_executable(), *address, *durable], stdout=subprocess.DEVNULL)
        eventually(lambda: answers(self.port))


class Node:
    """A server of a Cluster."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = node_port()
        self.folder, self.options = folder / str(self.port), options
        self.folder.mkdir()
        self.start()
        self.identity: str = self.ask("CLUSTER MYID").decode()

    def start(self, *further: str) -> None:
        command = [redis_executable(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        durable = ["--save", "", "--appendonly", "yes", "--appendfsync", "always"]
        clustered = ["--cluster-enabled", "yes", "--cluster-node-timeout", str(NODE_TIMEOUT_MS)]
        options = [*durable, *clustered, *self.options, *further]
        self.process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)
        eventually(lambda: answers(self.port))

    def ask(self, *command: Any) -> Any:
        """The reply of this node itself."""
        first, *others = command
        client: Any = redis.Redis(port=self.port, protocol=2)
        return client.execute_command(*first.split(), *others)

    def restart(self, *options: str) -> None:
        """With further options, or without those that an earlier restart gave."""
        self.kill()
        self.start(*options)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class PrivateCluster:
    """Three masters on loopback, each with a third of the slots; they are killed at the end."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.options = folder, options
        self.nodes: list[Node] = []
        for i in range(MASTERS):
            node = self.join()
            node.ask("CLUSTER ADDSLOTS", *range(i * SLOTS // MASTERS, (i + 1) * SLOTS // MASTERS))
        self.wait()

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:2])

    def info(self, node: Node) -> bytes:
        told: bytes = node.ask("CLUSTER INFO")
        return told

    def wait(self) -> None:
        """Until all nodes serve."""
        eventually(lambda: all(b"cluster_state:ok" in self.info(node) for node in self.nodes))

    def join(self) -> Node:
        """Another node, without slots, that the others know."""
        node = Node(self.folder, *self.options)
        self.nodes.append(node)
        eventually(lambda: self._met(node))
        return node

    def _met(self, node: Node) -> bool:
        """Whether all know each other. A meeting over which they stood still is off after a node's timeout, and made
        again here: by themselves they try once."""
        if node.identity not in self._known(self.nodes[0]) or self.nodes[0].identity not in self._known(node):
            node.ask("CLUSTER MEET", "127.0.0.1", self.nodes[0].port)
        return all(self._known(each) == {other.identity for other in self.nodes} for each in self.nodes)

    def _known(self, node: Node) -> set[str]:
        """Whom the node has met; one that it is still meeting goes by a name that is not its own."""
        told: bytes = node.ask("CLUSTER NODES")
        return {line.split()[0] for line in told.decode().splitlines() if "handshake" not in line}

    def holder(self, key: str) -> Node:
        """Who has the key's slot."""
        slot = key_slot(key.encode())
        for first, last, (_, _, identity, *_), *_ in self.nodes[0].ask("CLUSTER SLOTS"):
            if first <= slot <= last:  # not by its port: it may announce another
                return next(node for node in self.nodes if node.identity == identity.decode())
        raise LookupError(f"no node has slot {slot}")

    def begin_to_move(self, key: str, to: Node) -> None:
        """From here on the key's slot is in between: who has it sends what it has not on to `to`."""
        slot, source = key_slot(key.encode()), self.holder(key)
        to.ask("CLUSTER SETSLOT", slot, "IMPORTING", source.identity)
        source.ask("CLUSTER SETSLOT", slot, "MIGRATING", to.identity)

    def move_keys(self, key: str, to: Node, count: int = 1000) -> int:
        """Bring up to `count` keys of the key's slot over; returns how many there were."""
        source = self.holder(key)
        keys = source.ask("CLUSTER GETKEYSINSLOT", key_slot(key.encode()), count)
        if keys:
            source.ask("MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS", *keys)
        return len(keys)

    def end_to_move(self, key: str, to: Node) -> None:
        slot = key_slot(key.encode())
        masters = [node for node in self.nodes if b"role:master" in node.ask("INFO replication")]
        for node in [to, *(node for node in masters if node is not to)]:
            node.ask("CLUSTER SETSLOT", slot, "NODE", to.identity)

    def lines(self, name: str) -> list[str]:
        """Names of lines that begin so, one on each of the masters."""
        found: dict[int, str] = {}
        i = 0
        while len(found) < MASTERS:
            line = f"{name}-{i}"
            found.setdefault(self.holder(f"mhpc:{{{line}}}:images").port, line)
            i += 1
        return list(found.values())


@contextmanager
def private_cluster(folder: Path, *options: str) -> Iterator[PrivateCluster]:
    """A Cluster whose nodes keep what they confirmed under `folder`."""
    folder.mkdir()
    cluster = PrivateCluster(folder, *options)
    try:
        yield cluster
    finally:
        for node in cluster.nodes:
            node.kill()


def answers(port: int) -> bool:
    """Whether a server answers, and has read what it kept."""
    try:
        return bool(redis.Redis(port=port).ping())
    except redis.ConnectionError:
        return False
