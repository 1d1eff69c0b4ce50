"""Follows a line's results: python read.py press-3 [ID OF THE LAST ONE SEEN]"""

import os
import sys
import time

import msgpack
import redis

line, *seen = sys.argv[1:]
client = redis.Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"), protocol=2)
last = seen[0] if seen else "0-0"  # the oldest kept; store the last one somewhere, and nothing is missed or seen twice
while True:
    try:
        streams = client.xread({f"mhpc:{{{line}}}:scores": last}, count=100, block=2000) or []
    except redis.RedisError as error:  # it restarts, or the network is gone: to read again does no harm
        print(error, file=sys.stderr)
        time.sleep(1)
        continue
    for _, entries in streams:
        for entry, fields in entries:
            last = entry
            try:
                result = msgpack.unpackb(fields[b"result"])
                verdict = {None: "no verdict yet", True: "ANOMALOUS", False: "ok"}[result["anomalous"]]
                text = f"{result['id']}: {verdict}, score {result['score']}, threshold {result['threshold']}"
            except (KeyError, TypeError, ValueError) as error:  # somebody else's; the next ones are read
                print(f"{entry.decode()} is no result: {error!r}", file=sys.stderr)
            else:
                print(text, flush=True)
