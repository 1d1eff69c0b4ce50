"""What a worker's user must be allowed to do, tried in a transaction that is never carried out."""

from collections.abc import Mapping
from typing import Any

import redis

from worker.settings import LINES_KEY, WORKERS_KEY
from worker.streams.cluster import Cluster
from worker.streams.ids import line_key

# By the right's name in an ACL, a call of it; a server looks at rights when it puts a call into a transaction.
CALLS = {
    "ping": "PING",
    "time": "TIME",
    "script|exists": "SCRIPT EXISTS sha",
    "script|load": "SCRIPT LOAD script",
    "evalsha": "EVALSHA sha 1 KEY",
    "get": "GET KEY",
    "set": "SET KEY value",
    "expire": "EXPIRE KEY 1",
    "pttl": "PTTL KEY",
    "hget": "HGET KEY field",
    "hset": "HSET KEY field value",
    "hdel": "HDEL KEY field",
    "hincrby": "HINCRBY KEY field 1",
    "hgetall": "HGETALL KEY",
    "llen": "LLEN KEY",
    "lpop": "LPOP KEY",
    "rpush": "RPUSH KEY value",
    "xadd": "XADD KEY * field value",
    "xack": "XACK KEY group 0-1",
    "xautoclaim": "XAUTOCLAIM KEY group consumer 0 0-0",
    "xdel": "XDEL KEY 0-1",
    "xgroup|create": "XGROUP CREATE KEY group 0",
    "xgroup|delconsumer": "XGROUP DELCONSUMER KEY group consumer",
    "xgroup|setid": "XGROUP SETID KEY group 0",
    "xinfo|consumers": "XINFO CONSUMERS KEY group",
    "xinfo|groups": "XINFO GROUPS KEY",
    "xinfo|stream": "XINFO STREAM KEY",
    "xlen": "XLEN KEY",
    "xpending": "XPENDING KEY group",
    "xrange": "XRANGE KEY - +",
    "xreadgroup": "XREADGROUP GROUP group consumer STREAMS KEY >",
    "xrevrange": "XREVRANGE KEY + -",
    "xtrim": "XTRIM KEY MINID 0",
}
RIGHTS = {*CALLS, "multi", "exec"}


# What a worker of a fleet does beside, to the fleet's own keys.
FLEET_CALLS = {LINES_KEY: ("hgetall",), WORKERS_KEY: ("hset", "hgetall", "hdel")}


def missing_rights(client: redis.Redis, line: str) -> list[str]:
    """Names of the rights that the client's user lacks on a line's keys; the others are not tried without MULTI."""
    return _missing(client, line_key(line, "check"), CALLS)


def missing_fleet_rights(client: redis.Redis) -> dict[str, list[str]]:
    """By key of the fleet, the names of the rights that the client's user lacks on it."""
    found = {key: _missing(client, key, {name: CALLS[name] for name in names}) for key, names in FLEET_CALLS.items()}
    return {key: names for key, names in found.items() if names}


def _missing(client: redis.Redis, key: str, calls: Mapping[str, str]) -> list[str]:
    server: Any = client
    if isinstance(client, Cluster):
        server = server.get_redis_connection(server.get_node_from_key(key))
    pool = server.connection_pool
    connection = pool.get_connection()
    try:
        missing = [name for name in ("exec", "multi") if not _may(connection, name, key)]
        if "multi" not in missing:
            missing += [name for name, call in calls.items() if not _may(connection, call, key)]
        return missing
    finally:
        connection.disconnect()  # which ends the transaction
        pool.release(connection)


def _may(connection: Any, call: str, key: str) -> bool:
    connection.send_command(*(key if part == "KEY" else part for part in call.split()))
    try:
        connection.read_response()
    except redis.ResponseError as error:  # for EXEC it comes wrapped, or says that there was no MULTI
        return not (isinstance(error, redis.exceptions.NoPermissionError) or "NOPERM" in str(error))
    return True
