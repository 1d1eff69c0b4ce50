"""Adds one picture to a line: python send.py press-3 part.jpg"""

import os
import sys
import time
from pathlib import Path

import msgpack
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

line, path = sys.argv[1], Path(sys.argv[2])
client = redis.Redis.from_url(
    os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"),
    retry=Retry(NoBackoff(), 0),  # Redis(host=...) tries again by default: a lost reply, an entry added twice
)
image = {"id": path.name, "format": "jpeg", "data": path.read_bytes(), "ts": time.time()}
batch = msgpack.packb({"v": 1, "images": [image]})
print(client.xadd(f"mhpc:{{{line}}}:images", {"batch": batch}).decode())
