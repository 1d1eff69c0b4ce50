"""What a worker makes of what the fleet's keys hold."""

from hypothesis import given
from hypothesis import strategies as st

from worker.fleet import announced, declared, shares
from worker.settings import LINES_KEY

CAPACITIES = st.dictionaries(st.text("abc", min_size=1), st.integers(0, 40) | st.just(1_000_000), min_size=1)


@given(lines=st.integers(0, 200), capacities=CAPACITIES)
def test_shares_are_all_lines_that_fit_and_within_one_of_even(lines: int, capacities: dict[str, int]) -> None:
    found = shares(lines, capacities)
    assert found.keys() == capacities.keys()
    assert sum(found.values()) == min(lines, sum(capacities.values()))
    assert all(0 <= found[name] <= capacities[name] for name in found)
    most = max(found.values())
    assert all(found[name] >= most - 1 for name in found if found[name] < capacities[name])


def test_what_is_declared_is_read_and_what_cannot_be_used_is_told() -> None:
    found = {
        b"press-1": b"{}",
        b"press-2": b'{"learning": {"images": 7}}',
        b"press-3": b'{"learning": {"imags": 7}}',
        b"press-4": b'{"learning": {"images": 0}, "weight": -1}',
        b"press-5": b"\xff\x00",
        b"press-6": b"[" * 100_000,
        b"press-7": b'{"name": "press-8"}',
        b"Press 8": b"{}",
        b"\xff": b"{}",
    }
    good, problems = declared(found)
    assert sorted(good) == ["press-1", "press-2"]
    assert good["press-2"].learning is not None
    assert good["press-2"].learning.images == 7
    assert sorted(problems) == ["Press 8", "press-3", "press-4", "press-5", "press-6", "press-7", "\ufffd"]
    assert "imags: unknown key; known here: converge, forgetting, images" in problems["press-3"]
    assert "weight: " in problems["press-4"]
    assert problems["press-4"].count(": ") > 2  # each of two
    assert [text for text in problems.values() if not text.startswith(f"declared in {LINES_KEY}: ")] == []


def test_what_is_no_announcement_counts_for_nobody() -> None:
    strange = [b"", b"[]", b"7", b"{}", b'{"at": "x", "capacity": 1}', b'{"at": 1, "capacity": -1}', b"[" * 100_000]
    found = {str(number).encode(): value for number, value in enumerate(strange)}
    assert announced({**found, b"\xff": b'{"at": 1, "capacity": 2}'}) == {}
    assert announced({**found, b"a": b'{"at": 1, "capacity": 2}'}) == {"a": {"at": 1, "capacity": 2}}
