import msgpack
import numpy as np
import pytest

from tests.worker.console.site import Filled
from worker.console import recent
from worker.console.journal import journal
from worker.console.recent import KEPT, Recent, point_of
from worker.console.review import Index
from worker.console.unpacking import unpacked
from worker.message import Image


def test_the_newest_results_are_kept_and_no_more(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "SHARE_OF", 10)
    monkeypatch.setattr(recent, "READ", 6)
    keys = [filled.result(str(number)) for number in range(30)]
    follower = Recent(filled.streams, 20)
    assert [point.key for point in follower.refresh().points] == keys[-18:], "whole replies, no more than are kept"
    keys += [filled.result(str(number)) for number in range(10)]
    seen = follower.refresh()
    assert [point.key for point in seen.points] == keys[-20:]
    assert seen.total == 28


def test_what_is_new_to_a_looker_is_told_once(filled: Filled) -> None:
    follower = Recent(filled.streams, 20)
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
    assert len(Recent(filled.streams, KEPT).refresh().points) == 4


def test_the_rate_is_of_what_comes_while_somebody_looks(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("worker.console.recent.time.monotonic", lambda: now)
    follower = Recent(filled.streams, KEPT)
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
    assert Recent(filled.streams, KEPT).refresh().anomalous_share == 0.25


def test_the_share_is_of_as_many_however_few_points_are_kept(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "SHARE_OF", 20)
    monkeypatch.setattr(recent, "READ", 5)
    for number in range(30):
        filled.result(score=5.0 if number in (3, 12, 20) else 1.0)
    follower = Recent(filled.streams, 4)
    seen = follower.refresh()
    assert (len(seen.points), seen.anomalous_share) == (4, 0.1), "of the third, the list of lines knows nothing"
    filled.result(score=5.0)
    assert follower.refresh().anomalous_share == 0.15


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
    assert point_of("5-0", unpacked(packed)) is None


def test_texts_of_any_length_in_review_are_cut_where_they_are_kept(filled: Filled) -> None:
    filled.reviewed(Image("x" * 10**6, "png", b""), 5.0)
    (part,) = Index(filled.streams).refresh().parts
    assert len(part.id) == 512, "as long as any that a worker takes"
    assert "(1,000,000 characters, cut here)" in part.title


def test_review_is_followed_without_its_pictures(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.console.review.FILL_BYTES", 2_000)
    picture = Image("a", "png", b"x" * 1000)
    keys = [filled.reviewed(picture, 5.0) for _ in range(9)]
    index = Index(filled.streams)
    shown = index.refresh()
    assert [part.key for part in shown.parts] == keys[-2:], "so far as the bytes passed allow"
    assert index.refresh() == shown
    keys.append(filled.reviewed(picture, None, "quarantined"))
    later = index.refresh()
    assert [part.key for part in later.parts] == keys[-3:]
    assert later.version != shown.version
    filled.client.xtrim(filled.streams.review, maxlen=2, approximate=False)
    assert [part.key for part in index.refresh().parts] == keys[-2:]
    filled.client.delete(filled.streams.review)
    assert index.refresh().parts == ()


@pytest.mark.parametrize("gone", [1, 3, 5])
def test_a_part_that_is_taken_out_of_review_leaves_the_index_wherever_it_lay(filled: Filled, gone: int) -> None:
    keys = [filled.reviewed(Image("a", "png", b"x"), 5.0) for _ in range(6)]
    index = Index(filled.streams)
    index.refresh()
    filled.client.xdel(filled.streams.review, keys[gone])
    assert [part.key for part in index.refresh().parts] == [key for key in keys if key != keys[gone]]


def test_a_part_is_missed_though_others_came_or_were_trimmed_since(
    filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = Index(filled.streams)
    index.refresh()
    keys = [filled.reviewed(Image("a", "png", b"x"), 5.0) for _ in range(6)]
    index.refresh()
    filled.client.xdel(filled.streams.review, keys[0], keys[3])
    keys.append(filled.reviewed(Image("a", "png", b"x"), 5.0))
    assert [part.key for part in index.refresh().parts] == [keys[n] for n in (1, 2, 4, 5, 6)]
    monkeypatch.setattr("worker.console.review.FILL_BYTES", 1)
    index = Index(filled.streams)
    newest = index.refresh().parts[-1].key
    filled.client.xdel(filled.streams.review, newest)
    assert newest not in [part.key for part in index.refresh().parts], "of many, so far as they were read"


def test_trimming_reads_no_picture_again(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [filled.reviewed(Image("a", "png", b"x"), 5.0) for _ in range(6)]
    index = Index(filled.streams)
    index.refresh()
    monkeypatch.setattr(index, "_fill", lambda: pytest.fail("all was read again"))
    filled.client.xtrim(filled.streams.review, maxlen=3, approximate=False)
    assert [part.key for part in index.refresh().parts] == keys[3:]


EMPTY_MAPS = b"\x81\xa1a\xdd" + (2**20).to_bytes(4, "big") + b"\x80" * 2**20  # a MB that becomes 64


@pytest.mark.parametrize("packed", [EMPTY_MAPS, msgpack.packb({"id": "a", "meta": {"note": "x" * 5_000_000}})])
def test_what_no_worker_writes_is_not_unpacked(packed: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.console.unpacking.msgpack.unpackb", lambda _: pytest.fail("it was"))
    assert unpacked(packed) is None


def test_what_a_worker_writes_at_most_is_unpacked(filled: Filled) -> None:
    meta = {str(number): [number] * 3 for number in range(1500)}  # 16 KB
    filled.result(meta=meta, map=np.ones((512, 512), np.float32))
    ((_, fields),) = filled.client.xrange(filled.streams.scores)
    result = unpacked(fields[b"result"])
    assert result is not None
    assert result["meta"] == meta


def test_a_command_of_many_or_deep_arguments_is_shown_short(filled: Filled) -> None:
    deep: list[object] = []
    for _ in range(400):
        deep = [deep]
    for args in (
        {str(number): "x" * 60 for number in range(5_000)},
        {"entry": "x" * 10**6},
        {"entry": deep, "id": "y"},
    ):
        filled.put("control", command=msgpack.packb({"name": deep, "by": ["z"], "args": args}))
    told = journal(filled.streams)
    assert [one.args[:8] for one in told] == [" y", "x" * 8, "x" * 8]
    assert all(len(one.args) <= 200 and (one.by, one.name) == ("?", "not a command") for one in told)
