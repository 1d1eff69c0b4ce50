"""A line's versions in an object store: immutable, whole or not there, verified, pruned."""

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.bucket import new_bucket
from tests.worker.faulty import Faults, flip, objects
from tests.worker.keepers import flip_a_bit
from worker.errors import AbsentError, ModelError, SnapshotError, StoreError
from worker.snapshots import packed, stem_of
from worker.storage.object_store import ObjectStore

STEM = stem_of(3, 1)
TENSORS = {"mean": torch.arange(6, dtype=torch.float64), "anchors": torch.randn(20, 6)}
METADATA: dict[str, Any] = {"phase": "learning", "images_learned": 12, "applied_through": "5-0", "sources": [[1, 2]]}


@pytest.fixture(params=["s3", "faulty"])
def url(request: pytest.FixtureRequest, faults: Faults) -> str:
    if request.param == "s3":
        request.getfixturevalue("s3")
        return new_bucket()
    return f"faulty://{uuid.uuid4().hex}/models"


@pytest.fixture
def store(url: str, tmp_path: Path) -> ObjectStore:
    return ObjectStore(url, "press-3", tmp_path / "cache")


def another(store: ObjectStore, folder: Path) -> ObjectStore:
    """The same store, as another machine sees it."""
    return ObjectStore(store.place.rpartition("/")[0], "press-3", folder / "other")


def put(store: ObjectStore, *stems: str) -> None:
    for stem in stems:
        store.put(stem, packed({**TENSORS, "seq": torch.tensor(int(stem[-10:]))}, METADATA))


# -- whole or not there ------------------------------------------------------------------------------------------------


def test_a_version_comes_back_on_another_machine_as_it_was_written(store: ObjectStore, tmp_path: Path) -> None:
    assert (store.stems(), store.about_newest()) == ([], {})
    store.put(STEM, packed(TENSORS, METADATA))
    other = another(store, tmp_path)
    assert other.stems() == [STEM]
    loaded = other.load(STEM)
    assert {key: loaded.metadata[key] for key in METADATA} == METADATA
    assert {name: tensor.tolist() for name, tensor in loaded.tensors.items()} == {
        name: tensor.tolist() for name, tensor in TENSORS.items()
    }
    assert other.highest_epoch() == 3
    data, manifest = objects(store.place)
    assert manifest == f"{STEM}.json"
    assert data.startswith(f"{STEM}-")


def test_nobody_sees_a_version_whose_manifest_is_not_written(
    faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore(f"faulty://{uuid.uuid4().hex}", "press-3", tmp_path)
    monkeypatch.setattr(
        "worker.storage.object_store.failpoint", lambda name: setattr(faults, "away", name == "manifest")
    )
    with pytest.raises(SnapshotError, match=f"snapshot {STEM} is not written: .*nobody answers"):
        put(store, STEM)
    faults.away = False
    assert len(objects(store.place)) == 1
    assert store.stems() == []
    with pytest.raises(AbsentError):
        store.load(STEM)


def test_a_name_is_never_used_twice(store: ObjectStore, tmp_path: Path) -> None:
    put(store, STEM)
    with pytest.raises(SnapshotError, match="is not written"):
        another(store, tmp_path).put(STEM, packed({"mean": torch.zeros(2)}, METADATA))
    assert torch.equal(another(store, tmp_path / "third").load(STEM).tensors["mean"], TENSORS["mean"])


def test_a_full_store_leaves_what_was_there(faults: Faults, tmp_path: Path) -> None:
    store = ObjectStore(f"faulty://{uuid.uuid4().hex}", "press-3", tmp_path)
    put(store, STEM)
    faults.full = True
    with pytest.raises(SnapshotError, match="No space left in the bucket; mend it"):
        put(store, stem_of(3, 2))
    assert store.stems() == [STEM]
    store.load(STEM)


# -- damage ------------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_in_an_object_is_found_though_it_was_read_twice(store: ObjectStore, tmp_path: Path) -> None:
    put(store, STEM)
    flip(store.place, f"{STEM}-")
    for refuse in (another(store, tmp_path).load, another(store, tmp_path).verify, store.verify):
        with pytest.raises(SnapshotError, match="is damaged: SHA-256"):
            refuse(STEM)
    store.mark_bad(STEM)
    assert store.stems() == []
    assert [kept.bad for kept in store.kept()] == [True]


def test_a_way_that_flips_a_bit_once_is_no_damage(store: ObjectStore, tmp_path: Path, monkeypatch: Any) -> None:
    put(store, STEM)
    other, flips = another(store, tmp_path), [True]
    read = other.objects.read

    def once(name: str) -> bytes | None:
        content = read(name)
        if content and name.endswith(".safetensors") and flips:
            flips.pop()
            return content[:-1] + bytes([content[-1] ^ 1])
        return content

    monkeypatch.setattr(other.objects, "read", once)
    assert other.load(STEM).stem == STEM


@pytest.mark.parametrize("manifest", [b"", b"[1]", b'{"object": 3, "sha256": "x"}', b'{"object": "x"}', 100_000 * b"["])
def test_a_manifest_that_is_none_is_damage(faults: Faults, tmp_path: Path, manifest: bytes) -> None:
    store = ObjectStore(f"faulty://{uuid.uuid4().hex}", "press-3", tmp_path)
    store.objects.create(f"{STEM}.json", manifest)
    with pytest.raises(SnapshotError, match="its manifest is none"):
        store.load(STEM)
    assert [(kept.stem, kept.about) for kept in store.kept()] == [(STEM, {})]


def test_an_object_that_is_gone_is_damage_and_a_version_that_is_pruned_meanwhile_is_absent(
    store: ObjectStore, tmp_path: Path, monkeypatch: Any
) -> None:
    put(store, STEM)
    other = another(store, tmp_path)
    manifest = json.loads(store.objects.read(f"{STEM}.json") or b"")
    store.objects.remove(manifest["object"])
    with pytest.raises(SnapshotError, match="is gone"):
        other.load(STEM)
    known = iter([manifest])
    real = other._manifest
    monkeypatch.setattr(other, "_manifest", lambda stem: next(known, None) or real(stem))
    store.objects.remove(f"{STEM}.json")
    with pytest.raises(AbsentError):
        other.load(STEM)


def test_a_version_of_another_format_is_refused(store: ObjectStore, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr("worker.snapshots.VERSION", 7)
    put(store, STEM)
    monkeypatch.undo()
    with pytest.raises(ModelError, match="has format 7, this release reads 2"):
        another(store, tmp_path).load(STEM)


# -- what this machine keeps -------------------------------------------------------------------------------------------


def test_what_this_machine_has_is_not_read_again_and_not_believed(faults: Faults, tmp_path: Path) -> None:
    store = ObjectStore(f"faulty://{uuid.uuid4().hex}", "press-3", tmp_path)
    put(store, STEM)
    faults.asked.clear()
    store.load(STEM)
    assert faults.asked == [f"read {STEM}.json"]
    flip_a_bit(tmp_path / "press-3" / f"{STEM}.safetensors")
    store.load(STEM)
    assert len(faults.asked) == 3


def test_this_machine_keeps_two_versions_at_most(store: ObjectStore, tmp_path: Path) -> None:
    put(store, *(stem_of(1, seq) for seq in range(1, 6)))
    other = another(store, tmp_path)
    for stem in other.stems():
        other.load(stem)
    other.load(stem_of(1, 2))
    kept = sorted(path.stem for path in (tmp_path / "other" / "press-3").iterdir())
    assert kept == [stem_of(1, 2), stem_of(1, 5)]


def test_where_the_store_is_away_the_version_of_this_machine_is_at_hand(faults: Faults, tmp_path: Path) -> None:
    store = ObjectStore(f"faulty://{uuid.uuid4().hex}", "press-3", tmp_path)
    put(store, STEM)
    faults.away = True
    with pytest.raises(StoreError, match="nobody answers"):
        store.load(STEM)
    loaded = store.at_hand(STEM)
    assert loaded is not None
    assert loaded.stem == STEM
    assert store.at_hand(stem_of(3, 2)) is None
    assert store.about_newest()["phase"] == "learning"
    flip_a_bit(tmp_path / "press-3" / f"{STEM}.safetensors")
    assert store.at_hand(STEM) is None


def test_a_folder_that_takes_nothing_is_no_obstacle(faults: Faults, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    store = ObjectStore(f"faulty://{uuid.uuid4().hex}", "press-3", tmp_path / "cache")
    put(store, STEM)
    assert store.load(STEM).stem == STEM


# -- prune, pin --------------------------------------------------------------------------------------------------------


def test_prune_removes_old_versions_and_leftovers_but_none_that_is_pinned_set_aside_or_as_new_as_the_current(
    store: ObjectStore,
) -> None:
    stems = [stem_of(1, seq) for seq in range(1, 8)]
    put(store, *stems)
    store.pin(stems[0])
    store.mark_bad(stems[1])
    store.objects.create(f"{stem_of(1, 4)[:-1]}0-0123456789abcdef.safetensors", b"left by a killed writer")
    store.objects.create("of-somebody-else.txt", b"")
    store.prune(2, stems[5])
    assert store.stems() == [stems[0], *stems[5:]]
    assert [kept.stem for kept in store.kept()] == [*stems[:2], *stems[5:]]
    left = objects(store.place)
    assert len(left) == 4 * 2 + 2 + 1  # versions, marks, somebody else's
    assert "of-somebody-else.txt" in left
    for stem in store.stems():
        store.verify(stem)


def test_prune_spares_the_one_that_stood_before_the_last_change(store: ObjectStore) -> None:
    stems = [stem_of(1, seq) for seq in range(1, 7)]
    for stem in stems:
        store.put(stem, packed(TENSORS, METADATA | {"before": stems[1]}))
    store.prune(2, stems[5], stems[1])
    assert store.stems() == [stems[1], *stems[4:]]
    assert {each.about["before"] for each in store.kept()} == {stems[1]}
    store.verify(stems[1])


def test_prune_never_removes_what_redis_may_point_at_however_late_it_comes(store: ObjectStore) -> None:
    put(store, *(stem_of(1, seq) for seq in range(1, 7)))
    store.prune(2, stem_of(1, 2))  # asked for long ago; the keeper after it committed 3, and has not come to its own
    assert store.stems() == [stem_of(1, seq) for seq in range(2, 7)]


def test_prune_of_a_store_that_is_away_is_made_up_for_later(faults: Faults, tmp_path: Path) -> None:
    store = ObjectStore(f"faulty://{uuid.uuid4().hex}", "press-3", tmp_path)
    put(store, *(stem_of(1, seq) for seq in range(1, 4)))
    faults.away = True
    store.prune(2, stem_of(1, 3))
    faults.away = False
    store.prune(2, stem_of(1, 3))
    assert store.stems() == [stem_of(1, 2), stem_of(1, 3)]


def test_a_pin_is_for_a_version_that_is_there(store: ObjectStore) -> None:
    put(store, STEM)
    with pytest.raises(AbsentError, match=f"is not in .*; there are {STEM}"):
        store.pin(stem_of(9, 9))
    store.pin(STEM)
    assert [kept.pinned for kept in store.kept()] == [True]
    with pytest.raises(AbsentError, match=f"is not pinned in .*; pinned are {STEM}"):
        store.unpin(stem_of(9, 9))
    store.unpin(STEM)
    assert [kept.pinned for kept in store.kept()] == [False]
