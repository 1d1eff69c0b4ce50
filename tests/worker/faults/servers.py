"""Servers that keep what they confirmed."""

import subprocess

import redis

from tests.conftest import PrivateRedis, redis_executable
from tests.worker.helpers import eventually


class DurableRedis(PrivateRedis):
    """Each write is on disk before it is confirmed: what a kill takes is what nobody was told of."""

    def start(self) -> None:
        address = ["--port", str(self.port), "--bind", "127.0.0.1"]
        durable = ["--save", "", "--appendonly", "yes", "--appendfsync", "always", "--dir", str(self.folder)]
        self.process = subprocess.Popen([redis_executable(), *address, *durable], stdout=subprocess.DEVNULL)
        eventually(lambda: answers(self.port))


def answers(port: int) -> bool:
    """Whether a server answers, and has read what it kept."""
    try:
        return bool(redis.Redis(port=port).ping())
    except redis.ConnectionError:
        return False
