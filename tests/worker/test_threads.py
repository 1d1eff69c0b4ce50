from concurrent.futures import ThreadPoolExecutor

import torch

from worker.threads import compute_on


def test_a_threads_number_stays_its_own_whatever_others_set() -> None:
    with ThreadPoolExecutor(1, initializer=compute_on, initargs=(4,)) as judging:
        judging.submit(int).result()  # nothing of torch yet
        with ThreadPoolExecutor(1, initializer=compute_on, initargs=(1,)) as decoding:
            assert decoding.submit(torch.get_num_threads).result() == 1
            assert judging.submit(torch.get_num_threads).result() == 4
            assert decoding.submit(torch.get_num_threads).result() == 1
