"""A Redis Cluster: a client that repeats nothing, and calls on several keys at once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.cluster import PRIMARY, REDIS_ALLOWED_KEYS, ClusterNode, RedisCluster
from redis.exceptions import AskError, ClusterDownError, ClusterError, RedisClusterException, TryAgainError
from redis.retry import Retry

REDIRECTED = (AskError, TryAgainError, ClusterDownError)  # MovedError is an AskError; none of them carried anything out

Call = Callable[[Any], Any]  # of a client or a pipeline

_Node: Any = ClusterNode  # redis-py annotates neither it nor RedisCluster


class Cluster(RedisCluster):
    """Follows MOVED and ASK; a Cluster that does not serve is a `redis.ConnectionError`, as one that is gone."""

    def __init__(self, nodes: Sequence[tuple[str, int]], options: dict[str, Any]) -> None:
        base: Any = super()
        if unknown := set(options) - set(REDIS_ALLOWED_KEYS):  # redis-py would drop them
            raise TypeError(f"a Cluster takes no {', '.join(sorted(unknown))}")
        with _serving():
            base.__init__(
                startup_nodes=[_Node(host, port) for host, port in nodes],
                require_full_coverage=False,  # the servers say themselves whether they serve then
                **{**options, "retry": Retry(NoBackoff(), 0)},
            )

    def execute_command(self, *args: Any, **options: Any) -> Any:
        base: Any = super()
        with _serving():
            return base.execute_command(*args, **options)

    def determine_slot(self, *args: Any) -> Any:
        """Without asking a server where the key of XREAD and XREADGROUP stands, as redis-py does for each call."""
        base: Any = super()
        return base.keyslot(args[-2]) if args[0] in ("XREAD", "XREADGROUP") else base.determine_slot(*args)

    def get_node(self, host: str | None = None, port: int | None = None, node_name: str | None = None) -> Any:
        """Also one without a slot of its own yet, that the first of them migrates to: only ASK names it."""
        base: Any = super()
        found = base.get_node(host, port, node_name)
        if found is None and node_name:
            address, _, number = node_name.rpartition(":")
            found = self.nodes_manager.nodes_cache[node_name] = _Node(address, int(number), PRIMARY)
        return found


@contextmanager
def _serving() -> Iterator[None]:
    """CLUSTERDOWN, TRYAGAIN to the end, a slot that is nobody's, no node that answers: all of it passes.

    The last comes in place of a lost connection's own error, where asking the others for the new order fails, too.
    """
    try:
        yield
    except (ClusterError, TryAgainError, RedisClusterException) as error:
        raise redis.ConnectionError(f"the Cluster does not serve: {error}") from error


def together(client: Any, calls: Sequence[tuple[str, Call]]) -> list[Any]:
    """The replies to calls, each given with its key; a `redis.ResponseError` stands in its reply's place.

    They are sent in one go, to each node of a Cluster those on its keys. A Cluster's own pipeline would not do: it
    sends again what a lost connection has left unanswered.

    Raises:
        redis.ConnectionError, redis.TimeoutError: some calls may have been carried out.
    """
    if not isinstance(client, Cluster):
        return _sent(client, [call for _, call in calls])
    cluster: Any = client
    replies: dict[int, Any] = {}
    with _serving():
        by_node: dict[str, list[int]] = {}
        nodes = [cluster.get_node_from_key(key) for key, _ in calls]
        for i, node in enumerate(nodes):
            by_node.setdefault(node.name, []).append(i)
        for places in by_node.values():
            node_client = cluster.get_redis_connection(nodes[places[0]])
            replies |= zip(places, _sent(node_client, [calls[i][1] for i in places]), strict=True)
    return [
        _redirected(cluster, calls[i][1]) if isinstance(replies[i], REDIRECTED) else replies[i]
        for i in range(len(calls))
    ]


def _sent(client: Any, calls: Sequence[Call]) -> list[Any]:
    pipe = client.pipeline(transaction=False)
    for call in calls:
        call(pipe)
    replies: list[Any] = pipe.execute(raise_on_error=False)
    return replies


def _redirected(client: Any, call: Call) -> Any:
    try:
        return call(client)
    except redis.ResponseError as error:
        return error
