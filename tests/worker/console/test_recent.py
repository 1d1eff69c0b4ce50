import msgpack
import pytest

from tests.worker.console.site import Filled
from worker.console import recent
from worker.console.recent import Recent, point_of
from worker.console.review import Index
from worker.message import Image


def test_the_newest_results_are_kept_and_no_more(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "KEPT", 20)
    monkeypatch.setattr(recent, "READ", 6)
    keys = [filled.result(str(number)) for number in range(30)]
    follower = Recent(filled.streams)
    assert [point.key for point in follower.refresh().points] == keys[-18:], "whole replies, no more than are kept"
    keys += [filled.result(str(number)) for number in range(10)]
    seen = follower.refresh()
    assert [point.key for point in seen.points] == keys[-20:]
    assert seen.total == 28


def test_what_is_new_to_a_looker_is_told_once(filled: Filled) -> None:
    follower = Recent(filled.streams)
    assert follower.refresh().since(0) == ()
    keys = [filled.result(str(number)) for number in range(3)]
    seen = follower.refresh()
    assert [point.key for point in seen.since(0)] == keys
    assert [point.key for point in seen.since(2)] == keys[2:]
    assert seen.since(3) == ()


def test_a_fill_stops_where_the_replies_grow_too_large(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "FILL_BYTES", 10_000)
    monkeypatch.setattr(recent, "READ", 2)
    for _ in range(20):
        filled.result(meta={"note": "x" * 4000})
    assert len(Recent(filled.streams).refresh().points) == 4


def test_the_rate_is_of_what_comes_while_somebody_looks(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("worker.console.recent.time.monotonic", lambda: now)
    follower = Recent(filled.streams)
    filled.result()
    assert follower.refresh().per_second is None, "one look says nothing"
    for _ in range(4):
        now += 1
        filled.result()
        filled.result()
        seen = follower.refresh()
    assert seen.per_second == 2.0
    now += 60
    for _ in range(50):
        filled.result()
    assert follower.refresh().per_second is None, "when they came, nobody saw"
    now += 2
    assert follower.refresh().per_second == 0.0


def test_the_share_of_anomalies_is_of_the_newest_verdicts(filled: Filled) -> None:
    for score in (None, 1.0, 5.0, 1.0, 1.0):
        filled.result(score=score)
    assert Recent(filled.streams).refresh().anomalous_share == 0.25


@pytest.mark.parametrize(
    "result",
    [
        {"id": "a", "score": float("nan"), "threshold": float("inf"), "anomalous": 1, "model": 5, "latency_ms": "x"},
        {"id": "a", "score": True, "threshold": [], "anomalous": "yes", "model": None, "latency_ms": None},
        {"id": "a"},
    ],
)
def test_what_has_no_sense_in_a_result_is_left_out(result: dict[str, object]) -> None:
    assert point_of("5-0", result) == ("5-0", 5, "a", None, None, None, None, None)


@pytest.mark.parametrize("packed", [None, b"", b"\xc1", b"\x01", b"\x90", msgpack.packb({"id": 5}), msgpack.packb({})])
def test_what_is_no_result_is_no_point(packed: bytes | None) -> None:
    assert point_of("5-0", recent.unpacked(packed)) is None


def test_texts_of_any_length_in_review_are_cut_where_they_are_kept(filled: Filled) -> None:
    filled.reviewed(Image("x" * 10**6, "png", b""), 5.0)
    (part,) = Index(filled.streams).refresh().parts
    assert len(part.id) == 64
    assert "(1,000,000 characters, cut here)" in part.title


def test_review_is_followed_without_its_pictures(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.console.review.FILL_BYTES", 2_000)
    picture = Image("a", "png", b"x" * 1000)
    keys = [filled.reviewed(picture, 5.0) for _ in range(9)]
    index = Index(filled.streams)
    shown = index.refresh()
    assert [part.key for part in shown.parts] == keys[-4:], "so far as the bytes passed allow"
    assert index.refresh() == shown
    keys.append(filled.reviewed(picture, None, "quarantined"))
    later = index.refresh()
    assert [part.key for part in later.parts] == keys[-5:]
    assert later.version != shown.version
    filled.client.xtrim(filled.streams.review, maxlen=2, approximate=False)
    assert [part.key for part in index.refresh().parts] == keys[-2:]
    filled.client.delete(filled.streams.review)
    assert index.refresh().parts == ()
