"""Ranks of a second start meet in a store that still holds what the first one wrote."""

import threading
import time

import pytest

from worker.errors import RanksError
from worker.ranks.meeting import Store, _named


class Kept:
    """A store as torchrun's is, which outlives the ranks."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def set(self, key: str, value: str, /) -> None:
        self.values[key] = value.encode()

    def get(self, key: str, /) -> bytes:
        return self.values[key]

    def check(self, keys: list[str], /) -> bool:
        return all(key in self.values for key in keys)


def met(store: Store, ranks: dict[int, float], seconds: float = 20.0) -> list[str]:
    """What each of the ranks takes for the name; each comes so many seconds late."""
    names = [""] * len(ranks)

    def come(rank: int, late: float) -> None:
        time.sleep(late)
        names[rank] = _named(store, rank, len(ranks), time.monotonic() + seconds)

    threads = [threading.Thread(target=come, args=item) for item in ranks.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return names


@pytest.mark.parametrize("late", [{0: 0.0, 1: 0.3, 2: 0.1}, {0: 0.3, 1: 0.0, 2: 0.0}])
def test_each_start_has_a_name_of_its_own_whoever_comes_late(late: dict[int, float]) -> None:
    store = Kept()
    starts = [met(store, late) for _ in range(3)]
    assert [len(set(names)) for names in starts] == [1, 1, 1]
    assert len({names[0] for names in starts}) == 3
    assert all(names[0] for names in starts)


def test_one_that_does_not_come_is_not_waited_for_for_ever() -> None:
    with pytest.raises(RanksError, match="not all came in time"):
        _named(Kept(), 0, 2, time.monotonic() + 0.3)
