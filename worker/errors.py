"""The worker's exceptions, one tree. Each text names what came, what was expected and the remedy."""

from collections.abc import Sequence


def one_line(error: object, length: int = 1000) -> str:
    """An error's text for a terminal; torch's own come on many lines."""
    return " ".join(str(error).split())[:length]


def printable(text: str) -> str:
    """A text that came from outside, for a terminal: it may hold a terminal's commands."""
    return text if text.isprintable() else repr(text)


class WorkerError(Exception):
    """Anything that ends a command; `exit_code` is the process's."""

    exit_code = 1


class ConfigurationError(WorkerError):
    """A key, flag, environment name or file that cannot be used."""

    exit_code = 2


class RedisUnreachableError(WorkerError):
    """No Redis answers at the configured address."""

    exit_code = 3


class FateUnknownError(RedisUnreachableError):
    """The connection was lost while an entry went out: it was added, or it was not. `ids` are those of its images."""

    def __init__(self, ids: Sequence[str], cause: Exception) -> None:
        which = ids[0] if len(ids) == 1 else f"{ids[0]} to {ids[-1]}"
        super().__init__(
            f"the connection to Redis was lost while {which} went out: {cause}; nobody knows whether they arrived, so "
            "look for their results before sending them again"
        )
        self.ids = tuple(ids)


class ModelError(WorkerError):
    """The backbone or its weights cannot be used."""

    exit_code = 4


class StateError(WorkerError):
    """A line's state in Redis that somebody else has written to, so that it cannot be gone by."""


class DeviceError(WorkerError):
    """The device failed."""

    exit_code = 5


class SnapshotError(WorkerError):
    """A snapshot that cannot be written, or is not whole."""


class StoreError(ModelError):
    """A store of snapshots that cannot be asked here and now: it is slow, away, or refuses; try again."""

    exit_code = 1


class RanksError(WorkerError):
    """A rank of a process group is gone, or does not answer: all of them are to begin again."""


class FencedError(WorkerError):
    """Another keeper holds the line with a higher epoch: this one reads and commits nothing more."""


class AbsentError(WorkerError):
    """What was named is not there, or not any more."""


class ReplayError(WorkerError):
    """A dead letter that holds too little to be sent again."""


class RefusedError(Exception):
    """A command that a line cannot carry out; the text is the answer."""


class RejectedError(Exception):
    """An entry or an image that ends as a dead letter.

    `reason` is one of a small, fixed set, since it labels a metric; the text says what came and what was expected.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason
