import threading

import pytest

from worker.errors import SnapshotError, StoreError
from worker.runtime.errands import AT_ONCE, run_within, start


def test_a_disk_is_asked_at_once_and_a_store_aside() -> None:
    here = threading.get_ident()
    assert start(threading.get_ident, aside=False).result(0) == here
    assert start(threading.get_ident, aside=True).result(10) != here


@pytest.mark.parametrize("aside", [True, False])
def test_what_goes_wrong_is_told_to_who_asks(aside: bool) -> None:
    def refuse() -> None:
        raise SnapshotError("full")

    with pytest.raises(SnapshotError, match="full"):
        run_within(refuse, aside, 10, "s3://plant")

    def late() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        run_within(late, aside, 10, "s3://plant")


def test_nobody_waits_longer_than_he_wants() -> None:
    open_ = threading.Event()
    with pytest.raises(StoreError, match=r"s3://plant has not answered for 0\.01 s; is it slow, or away\?"):
        run_within(open_.wait, True, 0.01, "s3://plant")
    open_.set()


def test_so_many_at_once_and_no_more() -> None:
    open_, there = threading.Event(), threading.Semaphore(0)

    def stay() -> None:
        there.release()
        open_.wait(30)

    errands = [start(stay, aside=True) for _ in range(AT_ONCE + 2)]
    for _ in range(AT_ONCE):
        assert there.acquire(timeout=30)
    assert not there.acquire(timeout=0.05)
    open_.set()
    for errand in errands:
        errand.result(30)
