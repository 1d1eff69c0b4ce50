"""The ranks that learn one line: messages between them, and what rank 0 has them do. No pickle: maps of msgpack."""

import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import msgpack
import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor

from mhpc.core.learner import OnePassLearner
from mhpc.core.recent import Convergence
from mhpc.core.scorer import Scorer
from worker.errors import RanksError, one_line
from worker.message import Image
from worker.ranks.share import Share

BEATS = 4  # that rank 0 gives within the time after which a rank is taken for gone
ENDED = {"do": "end"}

Step = tuple[int, list[int]]  # the number of its first picture, and the places of its images among those opened


class Crew:
    """All ranks, as rank 0 has them work; it does its own share between a message and the replies.

    A learner is shared out under a `ticket`: who holds a share of another one begins anew, so that what was merged, or
    loaded again from a snapshot, is counted once.

    Args:
        own: rank 0's share.
        seconds: after which a rank that does not answer is gone.
    """

    def __init__(self, own: Share, seconds: float) -> None:
        self.own = own
        self.size = dist.get_world_size()
        self.seconds = seconds
        self.tickets = count(1)
        self.lost: RanksError | None = None
        self._busy = False
        self._spoke_at = time.monotonic()
        self._scored_by: Tensor | None = None  # the bank that the ranks calibrate by

    def beat(self) -> None:
        """Let the ranks know that rank 0 is there, where it had nothing to say to them for a while.

        Raises:
            RanksError: one is gone, or was gone before.
        """
        if self.lost:
            raise self.lost
        if not self._busy and time.monotonic() - self._spoke_at > self.seconds / BEATS:
            self._all("beat", [{}] * self.size)

    def open(self, images: Sequence[Sequence[Image]]) -> list[list[bool]]:
        """Have each rank decode its images; which of them could be."""
        packed = [[[image.id, image.format, image.data, image.shape] for image in of_rank] for of_rank in images]
        replies = self._all("open", [{"images": of_rank} for of_rank in packed])
        return [reply["usable"] for reply in replies]

    def learn(
        self, learner: OnePassLearner, ticket: int, steps: Sequence[Sequence[Step]], forget: float
    ) -> tuple[list[list[bool]], list[Convergence]]:
        """Have each rank learn from opened images, step by step, having forgotten a share of what it knows.

        Returns:
            By rank, which images were learned and not set aside; and what each that has learned says of convergence.
        """
        self.own.take_over(learner, ticket)
        replies = self._all("learn", [{"ticket": ticket, "forget": forget, "steps": list(s)} for s in steps])
        known = [Convergence(*reply["convergence"]) for reply in replies if reply["convergence"]]
        return [reply["learned"] for reply in replies], known

    def calibrate(self, scorer: Scorer, places: Sequence[Sequence[int]]) -> tuple[list[Tensor], list[Tensor]]:
        """Scores [n] and means in Z-space [n, d + 1] of each rank's opened images at these places."""
        if self._scored_by is not scorer.memory:
            state = save({name: tensor.contiguous() for name, tensor in scorer.state_dict().items()})
            self._all("score_by", [{"top_k": scorer.top_k, "scorer": state}] * self.size)
            self._scored_by = scorer.memory
        replies = self._all("calibrate", [{"places": list(of_rank)} for of_rank in places])
        scores = [torch.tensor(reply["scores"], dtype=torch.float64) for reply in replies]
        means = [
            torch.frombuffer(bytearray(reply["means"]), dtype=torch.float32).reshape(len(reply["scores"]), -1)
            if reply["scores"]
            else torch.empty(0, scorer.memory.shape[1])
            for reply in replies
        ]
        return scores, means

    def merge(self, learner: OnePassLearner, ticket: int) -> OnePassLearner:
        """A new learner that knows what all ranks have learned under this ticket; theirs stay as they are."""
        self.own.take_over(learner, ticket)
        self._all("merge", [{"ticket": ticket}] * self.size)
        whole, self.own.whole = self.own.whole, None
        assert whole is not None  # noqa: S101 - rank 0 is given it
        return whole

    def saved(self, learner: OnePassLearner, ticket: int) -> list[dict[str, Tensor]]:
        """The shares themselves, by rank, as tensors."""
        self.own.take_over(learner, ticket)
        return [load(reply["share"]) for reply in self._all("save", [{"ticket": ticket}] * self.size)]

    def restore(self, shares: Sequence[dict[str, Tensor]], ticket: int) -> OnePassLearner:
        """Have each rank go on with its share, as it was saved; rank 0's."""
        self._all("restore", [{"ticket": ticket, "share": save(share)} for share in shares])
        return self.own.learner

    def end(self) -> None:
        """Let the ranks end."""
        for rank in range(1, self.size):
            _wait(_sent(ENDED, rank))

    def _all(self, what: str, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Have every rank do its part; its replies, by rank.

        Raises:
            RanksError: one is gone, or has not answered in time.
            RuntimeError: one could not do it.
        """
        self._busy = True
        try:
            sent = [_sent({"do": what, **messages[rank]}, rank) for rank in range(1, self.size)]
            own = self.own.do(what, messages[0])
            for each in sent:
                _wait(each)
            replies = [own, *(receive(rank) for rank in range(1, self.size))]
        except RanksError as error:
            self.lost = error
            raise
        finally:
            self._busy, self._spoke_at = False, time.monotonic()
        failed = {rank: reply["error"] for rank, reply in enumerate(replies) if "error" in reply}
        if failed:
            raise RuntimeError("; ".join(f"rank {rank}: {error}" for rank, error in failed.items()))
        return replies


def follow(share: Share) -> None:
    """Do what rank 0 says, until it says that it is over.

    Raises:
        RanksError: it is gone, or has said nothing for too long.
    """
    while (message := receive(0)) != ENDED:
        _wait(_sent(share.do(message.pop("do"), message), 0))


def exchange(message: dict[str, Any], judge: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> dict[str, Any]:
    """What rank 0 makes of the messages of all ranks, told to all."""
    ranks = range(1, dist.get_world_size())
    if dist.get_rank():
        _wait(_sent(message, 0))
        return receive(0)
    judged = judge([message, *(receive(rank) for rank in ranks)])
    for rank in ranks:
        _wait(_sent(judged, rank))
    return judged


def _sent(message: dict[str, Any], rank: int) -> list[tuple[Any, Tensor]]:
    """Begin to send a message: its length, then itself; with each the tensor that must live until it has gone."""
    data = torch.frombuffer(bytearray(msgpack.packb(message)), dtype=torch.uint8)
    try:
        return [(dist.isend(part, rank), part) for part in (torch.tensor([len(data)]), data)]
    except RuntimeError as error:
        raise _gone(rank, error) from None


def _wait(sending: list[tuple[Any, Tensor]]) -> None:
    try:
        for work, _ in sending:
            work.wait()
    except RuntimeError as error:
        raise RanksError(f"a rank does not take what it is sent: {_told(error)}") from None


def receive(rank: int) -> dict[str, Any]:
    """The next message of a rank."""
    length = torch.zeros(1, dtype=torch.int64)
    try:
        dist.recv(length, rank)
        data = torch.empty(int(length), dtype=torch.uint8)
        dist.recv(data, rank)
    except RuntimeError as error:
        raise _gone(rank, error) from None
    message: dict[str, Any] = msgpack.unpackb(data.numpy().tobytes(), max_bin_len=len(data), strict_map_key=True)
    return message


def _gone(rank: int, error: RuntimeError) -> RanksError:
    return RanksError(
        f"rank {rank} is gone, or has not answered in time ({_told(error)}); torchrun starts all ranks again, from the "
        "last snapshot"
    )


def _told(error: RuntimeError) -> str:
    return one_line(str(error).partition("]")[2] or error, 160)
