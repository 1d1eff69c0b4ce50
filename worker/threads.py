"""How many threads torch has on a thread of ours."""

import torch


def compute_on(threads: int) -> None:
    """Have torch compute on so many threads where it is called from this thread; for those that a pool starts.

    The number is a thread's own only once the thread has asked for it: until then it is what any other has set last.
    """
    torch.get_num_threads()
    torch.set_num_threads(threads)
