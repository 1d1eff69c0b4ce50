"""The leases of all lines that a worker keeps: renewed together, and let go."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from threading import Event

import redis
import structlog

from worker.errors import FencedError
from worker.keeping.keeper import Keeper
from worker.streams.client import CONNECTION_ERRORS
from worker.streams.redial import RedialledError

log = structlog.get_logger()


def renew(keepers: Iterable[Keeper]) -> None:
    """Those for which it is time. What fails, the line's own part of the turn finds out.

    Raises:
        redis.ConnectionError, redis.TimeoutError, RedialledError: the others are not tried: each would wait as long
            again.
    """
    for keeper in keepers:
        if keeper.epoch:
            with suppress(FencedError, redis.ResponseError):
                keeper.lease.renew(keeper.epoch)


def amid_a_turn(announce: Callable[[], None], keepers: Iterable[Keeper], stopping: Event) -> None:
    """Say that the worker is there, and renew. What fails, the turn's own commands find out.

    Raises:
        redis.ConnectionError, redis.TimeoutError, RedialledError: while it stops: that waits for Redis once.
    """
    try:
        with suppress(redis.ResponseError):
            announce()
        renew(keepers)
    except CONNECTION_ERRORS:
        if stopping.is_set():
            raise


def let_go(keeper: Keeper, reached: bool = True) -> bool:
    """Make durable what was learned and release the lease, where Redis was `reached` just now; whether it still is.

    Who has waited for it in vain asks for no further line: a hundred of them would outlast what a stop is given.
    """
    kept, problem = bool(keeper.epoch), "" if reached else "Redis has not answered for a line before it"
    try:
        if kept and reached:
            keeper.close()
    except (FencedError, redis.RedisError) as error:
        reached, problem = isinstance(error, FencedError | redis.ResponseError | RedialledError), str(error)
    if kept and problem:
        log.warning("not drained; its entries come again", line=keeper.line.name, error=problem)
    keeper.lose("")
    return reached
