import pytest

from worker.keeping import schedule
from worker.keeping.schedule import BRIEF, MOST, REST, Schedule
from worker.settings import SnapshotSettings


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(schedule, "time", clock)
    return clock


def made(took: float) -> Schedule:
    """A schedule right after a version that took so long, and as many images as are wanted since."""
    found = Schedule(SnapshotSettings(every_images=10, every_seconds=30))
    found.made(took)
    found.images = 10
    return found


def test_a_version_that_is_quickly_there_is_made_as_often_as_images_say(clock: Clock) -> None:
    assert made(BRIEF / 2).due(owed=True, ended=False)


def test_one_that_takes_long_is_made_a_tenth_of_the_time_at_most(clock: Clock) -> None:
    found = made(1.0)
    assert not found.due(owed=True, ended=False)
    clock.now += REST - 0.1
    assert not found.due(owed=True, ended=False)
    clock.now += 0.2
    assert found.due(owed=True, ended=False)


def test_however_long_it_takes_it_is_made_after_so_many_seconds_and_where_a_phase_ends(clock: Clock) -> None:
    found = made(1000.0)
    assert found.due(owed=True, ended=True)
    clock.now += 31
    assert found.due(owed=True, ended=False)


def test_a_line_that_learns_very_fast_waits_for_no_rest_without_bound(clock: Clock) -> None:
    found = made(1.0)
    found.images = MOST * 10
    assert found.due(owed=True, ended=False)


def test_nothing_is_due_where_nothing_is_owed(clock: Clock) -> None:
    assert not made(0.0).due(owed=False, ended=True)
