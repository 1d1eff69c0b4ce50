"""A worker whose loop turns in this process."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx

from worker.daemon import Worker
from worker.settings import Settings

Run = Callable[[Settings], Worker]


@contextmanager
def running(settings: Settings) -> Iterator[Worker]:
    """A worker whose loop turns on a thread of this process; at the end it drains, as on SIGTERM."""
    worker = Worker(settings)
    worker.startup()
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield worker
    finally:
        worker.stopping.set()
        thread.join(60)
        worker.drain()
        worker.shutdown()
        assert not thread.is_alive()


def get(worker: Worker, path: str) -> tuple[int, str]:
    answer = httpx.get(f"http://127.0.0.1:{worker.http.port}{path}", timeout=30)
    return answer.status_code, answer.text
