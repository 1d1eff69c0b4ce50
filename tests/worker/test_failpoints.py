import pytest

from worker import failpoints
from worker.failpoints import armed


def test_without_the_variable_nothing_happens() -> None:
    failpoints.failpoint("commit")


def passes(text: str, *places: tuple[str, str]) -> list[int]:
    """Numbers of the places at which it raised."""
    failpoint, raised = armed(text), []
    for number, place in enumerate(places):
        try:
            failpoint(*place)
        except RuntimeError:
            raised.append(number)
    return raised


@pytest.mark.parametrize(
    ("text", "expected"),
    [("gate:error", [0]), ("gate:error:2", [2]), ("gate:error:2+", [2, 3]), ("gate=b:error:1+", [2])],
)
def test_it_strikes_at_its_place_and_time(text: str, expected: list[int]) -> None:
    assert passes(text, ("gate", "a"), ("read", "b"), ("gate", "b"), ("gate", "a")) == expected


@pytest.mark.parametrize("text", ["nowhere:kill", "gate", "gate:explode", "gate:kill:x", "gate:kill:"])
def test_what_it_cannot_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected NAME"):
        armed(text)
