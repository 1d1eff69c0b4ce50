import datetime

import pytest

from worker.console.pictures import Drawn
from worker.console.rows import calibration
from worker.console.text import count, cut, meta_text, number, percent, seconds, shortened, title


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.2345678, "1.235"), (12.3456, "12.35"), (0.012345, "0.01235"), (123456.7, "123,457"), (0, "0"), (1e-9, "1e-09"),
     (-2.5, "-2.500"), (None, "–"), (float("nan"), "–"), (float("inf"), "–"), (True, "–"), ("5", "–")],  # noqa: RUF001 - the dash of an empty cell
)  # fmt: skip
def test_numbers_for_people(value: object, text: str) -> None:
    assert number(value) == text


def test_shares_counts_and_times_for_people() -> None:
    assert [percent(None), percent(0.0), percent(0.0123), percent(1.0)] == ["–", "0 %", "1.23 %", "100 %"]  # noqa: RUF001 - the dash of an empty cell
    assert [count(None), count(0), count(1234567)] == ["–", "0", "1,234,567"]  # noqa: RUF001 - the dash of an empty cell
    assert [seconds(s) for s in (None, 0.05, 5, 150, 7300, 200_000)] == ["–", "50 ms", "5 s", "2 min", "2 h", "2 d"]  # noqa: RUF001 - the dash of an empty cell


def test_texts_from_outside_are_cut_and_show_what_cannot_be_seen() -> None:
    assert cut("a\x1b[2J\u202eb\n") == "a�[2J�b�"
    assert len(cut("x" * 10**6)) == 64
    assert title("short") == "short"
    assert title("x" * 1000).endswith("(1,000 characters, cut here)")


def test_of_a_long_id_the_end_is_shown_too() -> None:
    assert shortened("short") == "short"
    assert shortened("x" * 64) == "x" * 64
    long = shortened("/mnt/" + "x" * 100 + "/part\x1b.png")
    assert (long[:5], long[-9:], len(long)) == ("/mnt/", "part�.png", 64)


def test_meta_of_any_kind_is_text() -> None:
    text = meta_text({"bytes": b"123", "when": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC), "text": "ä"})
    assert '"3 bytes"' in text
    assert "2026" in text
    assert "ä" in text
    assert len(meta_text({"x": "y" * 10**6})) < 5000
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    assert "too deep" in meta_text(deep)
    assert meta_text({b"key": 1, "other": 2}) == '{\n  "other": 2\n}'


NO_BINS = [
    b"", b"x", b"[]", b"{}", b"[" * 10_000, b'{"low":1,"high":2}', b'{"low":2,"high":1,"counts":[1]}',
    b'{"low":1,"high":2,"counts":[0]}', b'{"low":1,"high":2,"counts":["x"]}', b'{"low":1,"high":2,"counts":5}',
    b'{"low":1,"high":Infinity,"counts":[1]}',
]  # fmt: skip


@pytest.mark.parametrize("written", NO_BINS)
def test_bins_that_are_none_are_left_out(written: bytes) -> None:
    assert calibration({"calibration": written}) is None


def test_what_was_drawn_is_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.console.pictures.CACHE_BYTES", 100)
    drawn, draws = Drawn(), list[str]()

    def draw(name: str) -> bytes:
        draws.append(name)
        return b"x" * 40

    for name in ("a", "b", "a", "c", "a", "b"):
        drawn.get((name,), lambda name=name: draw(name))  # type: ignore[misc]  # binds the loop's
    assert draws == ["a", "b", "c", "b"]
