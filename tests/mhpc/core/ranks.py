"""Processes that are the ranks of one process group, gloo on the CPU, forked from one that has imported torch."""

import io
import secrets
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mhpc.core.distributed import merged
from mhpc.core.learner import STEP, OnePassLearner

RANKS = 4
SECONDS = 240.0  # that a test of a busy machine may take

Result = TypeVar("Result")
forked: Any = get_context("forkserver")
forked.set_forkserver_preload(["torch", "mhpc.core.distributed"])


def in_ranks(folder: Path, work: Callable[..., Result], *args: Any, ranks: int = RANKS) -> list[Result]:
    """What a module's function gives in each of so many ranks, by rank."""
    queue = forked.Queue()
    group = (f"file://{folder}/store-{secrets.token_hex(4)}", timedelta(seconds=60), ranks)
    processes = [forked.Process(target=_be_a_rank, args=(queue, rank, group, work, args)) for rank in range(ranks)]
    for process in processes:
        process.start()
    saved = dict(queue.get(timeout=SECONDS) for _ in processes)
    for process in processes:
        process.join(SECONDS)
    wrong = [result for result in saved.values() if isinstance(result, str)]
    assert not wrong, wrong[0]
    return [torch.load(io.BytesIO(saved[rank])) for rank in range(ranks)]


def _be_a_rank(
    queue: Any, rank: int, group: tuple[str, timedelta, int], work: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", *group, rank)
        result = io.BytesIO()  # a queue of tensors would share memory of a process that has ended
        torch.save(work(*args), result)
        queue.put((rank, result.getvalue()))
        dist.destroy_process_group()
    except Exception:
        queue.put((rank, traceback.format_exc()))


def own_share(learner: OnePassLearner, images: Tensor) -> OnePassLearner:
    """Learn this rank's steps of images [B, P, D]: steps of 8 go to the ranks in turn."""
    for number, step in enumerate(images.split(STEP)):
        if number % dist.get_world_size() == dist.get_rank():
            learner.partial_fit(step, first=number * STEP)
    return learner


def whole(learner: OnePassLearner) -> dict[str, Tensor]:
    """What all ranks have learned, as tensors; nothing but on rank 0."""
    found = merged(learner)
    return {} if found is None else found.state_dict()
