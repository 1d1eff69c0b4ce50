"""Follows a line's results: python read.py press-3 [ID OF THE LAST ONE SEEN]"""

import os
import sys

import msgpack
import redis

line, *seen = sys.argv[1:]
client = redis.Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"), protocol=2)
last = seen[0] if seen else "0-0"  # the oldest kept; store the last one somewhere, and nothing is missed or seen twice
while True:
    for _, entries in client.xread({f"mhpc:{{{line}}}:scores": last}, count=100, block=5000) or []:
        for entry, fields in entries:
            result = msgpack.unpackb(fields[b"result"])
            verdict = {None: "no verdict yet", True: "ANOMALOUS", False: "ok"}[result["anomalous"]]
            text = f"{result['id']}: {verdict}, score {result['score']}, threshold {result['threshold']}"
            print(text, flush=True)
            last = entry
