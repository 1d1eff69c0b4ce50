import errno
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from worker.runtime.threads import BEHIND, compute_behind, compute_on


def test_a_threads_number_stays_its_own_whatever_others_set() -> None:
    with ThreadPoolExecutor(1, initializer=compute_on, initargs=(4,)) as judging:
        judging.submit(int).result()  # nothing of torch yet
        with ThreadPoolExecutor(1, initializer=compute_on, initargs=(1,)) as decoding:
            assert decoding.submit(torch.get_num_threads).result() == 1
            assert judging.submit(torch.get_num_threads).result() == 4
            assert decoding.submit(torch.get_num_threads).result() == 1


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere niceness is that of the whole process")
def test_a_thread_that_computes_behind_others_is_alone_in_that() -> None:
    before = niceness()
    with ThreadPoolExecutor(1, initializer=compute_behind, initargs=(3,)) as judging:
        assert judging.submit(niceness).result() == min(before + BEHIND, 19)
        assert judging.submit(torch.get_num_threads).result() == 3
    assert niceness() == before


def test_where_niceness_is_refused_it_computes_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: int) -> None:
        raise OSError(errno.ENOSYS, "refused")

    monkeypatch.setattr(os, "setpriority", refused)
    with ThreadPoolExecutor(1, initializer=compute_behind, initargs=(3,)) as judging:
        assert judging.submit(torch.get_num_threads).result() == 3
