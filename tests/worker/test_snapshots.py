import errno
import json
import os
import resource
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from worker.errors import AbsentError, ModelError, SnapshotError, WorkerError
from worker.snapshots import VERSION, SnapshotStore, epoch_of, stem_of

STEM = stem_of(3, 7)
TENSORS = {
    "anchors": torch.arange(600, dtype=torch.float32).reshape(30, 20),
    "mass": torch.arange(30),
    "recent": torch.tensor([True, False]),
    "radius": torch.tensor(0.1, dtype=torch.float64),
    "empty": torch.empty(0, dtype=torch.float64),
}
METADATA = {"line": "press-3", "phase": "scoring", "applied_through": "5-1", "threshold": {"value": 0.1}, "epoch": 3}


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    return SnapshotStore(tmp_path / "snapshots", "press-3")


def path_of(store: SnapshotStore, stem: str = STEM) -> Path:
    return store.directory / f"{stem}.safetensors"


def files(store: SnapshotStore) -> list[str]:
    return sorted(path.name for path in store.directory.iterdir()) if store.directory.is_dir() else []


def refused(store: SnapshotStore, stem: str = STEM, error: type[WorkerError] = SnapshotError) -> str:
    with pytest.raises(error) as caught:
        store.load(stem)
    assert stem in str(caught.value)
    return str(caught.value)


# -- whole versions ----------------------------------------------------------------------------------------------------


def test_a_version_comes_back_as_it_was_written(store: SnapshotStore) -> None:
    store.write(STEM, TENSORS, METADATA)
    stem, tensors, metadata = store.load(STEM)
    assert stem == STEM
    assert metadata == {**METADATA, "version": VERSION}
    assert set(tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=0)


def test_versions_sort_by_epoch_then_sequence(store: SnapshotStore) -> None:
    assert stem_of(3, 7) == "0000000003-0000000007"
    assert epoch_of(stem_of(12, 1)) == 12
    for epoch, seq in [(2, 10), (10, 1), (2, 9), (9, 30)]:
        store.write(stem_of(epoch, seq), TENSORS, METADATA)
    assert store.stems() == [stem_of(2, 9), stem_of(2, 10), stem_of(9, 30), stem_of(10, 1)]
    assert store.highest_epoch() == 10


def test_a_line_without_a_folder_has_no_versions(store: SnapshotStore) -> None:
    assert store.stems() == []
    assert store.highest_epoch() == 0
    refused(store, error=AbsentError)


def test_files_of_other_names_are_not_versions(store: SnapshotStore) -> None:
    store.write(STEM, TENSORS, METADATA)
    for name in ("notes.txt", "1-1.safetensors", f"{stem_of(9, 9)}.123.tmp", "model.safetensors"):
        (store.directory / name).write_bytes(b"")
    assert store.stems() == [STEM]
    assert store.highest_epoch() == 3


def test_a_version_that_was_set_aside_is_no_version_but_its_epoch_stays_taken(store: SnapshotStore) -> None:
    store.write(stem_of(2, 1), TENSORS, METADATA)
    store.write(STEM, TENSORS, METADATA)
    store.mark_bad(STEM)
    store.mark_bad(STEM)
    assert files(store) == [f"{stem_of(2, 1)}.safetensors", f"{STEM}.bad"]
    assert store.stems() == [stem_of(2, 1)]
    assert store.highest_epoch() == 3


def test_prune_keeps_the_newest_and_the_current_and_clears_what_a_killed_writer_left(store: SnapshotStore) -> None:
    stems = [stem_of(1, seq) for seq in range(1, 7)]
    for stem in stems:
        store.write(stem, TENSORS, METADATA)
    (store.directory / f"{stem_of(1, 7)}.4711.tmp").write_bytes(b"half a snapshot")
    store.prune(2, current=stems[1])
    assert files(store) == [f"{stem}.safetensors" for stem in (stems[1], stems[4], stems[5])]


def test_prune_spares_the_one_that_stood_before_the_last_change(store: SnapshotStore) -> None:
    stems = [stem_of(1, seq) for seq in range(1, 7)]
    for stem in stems:
        store.write(stem, TENSORS, METADATA | {"before": stems[1]})
    store.prune(2, stems[5], stems[1])
    assert store.stems() == [stems[1], *stems[4:]]
    assert {each.about["before"] for each in store.kept()} == {stems[1]}


def test_prune_removes_nothing_while_there_are_few(store: SnapshotStore) -> None:
    store.write(STEM, TENSORS, METADATA)
    store.prune(3, current=STEM)
    assert store.stems() == [STEM]


# -- damaged versions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 0.999])
def test_a_flipped_bit_in_the_tensors_is_found(store: SnapshotStore, share: float) -> None:
    store.write(STEM, TENSORS, METADATA)
    content = bytearray(path_of(store).read_bytes())
    start = 8 + struct.unpack("<Q", content[:8])[0]  # behind the header
    content[start + int(share * (len(content) - start))] ^= 1
    path_of(store).write_bytes(content)
    assert "damaged" in refused(store)


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_refused(store: SnapshotStore, kept: float) -> None:
    store.write(STEM, TENSORS, METADATA)
    content = path_of(store).read_bytes()
    path_of(store).write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    assert "damaged" in refused(store)


def test_a_changed_manifest_is_found(store: SnapshotStore) -> None:
    store.write(STEM, TENSORS, METADATA)
    content = path_of(store).read_bytes()
    assert content.count(b"5-1") == 1
    path_of(store).write_bytes(content.replace(b"5-1", b"4-1"))
    assert "damaged" in refused(store)


def with_manifest(store: SnapshotStore, metadata: dict[str, str] | None) -> None:
    store.directory.mkdir(parents=True)
    save_file(TENSORS, path_of(store), metadata)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"other": "x"},
        {"mhpc": "no json"},
        {"mhpc": "[]"},
        {"mhpc": "[" * 100_000},
        {"mhpc": '"x"'},
        {"mhpc": "{}"},
        {"mhpc": json.dumps({"version": VERSION})},
        {"mhpc": json.dumps({"version": VERSION, "sha256": "0" * 64})},
        {"mhpc": json.dumps({"version": VERSION, "sha256": None})},
    ],
)
def test_a_manifest_that_lies_is_refused(store: SnapshotStore, metadata: dict[str, str] | None) -> None:
    with_manifest(store, metadata)
    refused(store)
    assert [each.stem for each in store.kept()] == [STEM]


def test_a_manifest_however_deep_is_refused(store: SnapshotStore) -> None:
    store.directory.mkdir(parents=True)
    for depth in range(900, 1000):  # about where it can be read, and not be written any more
        nested = "[" * depth + "]" * depth
        save_file(TENSORS, path_of(store), {"mhpc": f'{{"sha256": "", "version": {VERSION}, "a": {nested}}}'})
        refused(store)


@pytest.mark.parametrize("version", [1, 3])
def test_another_format_is_refused_by_its_number(
    store: SnapshotStore, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("worker.snapshots.VERSION", version)
        store.write(STEM, TENSORS, METADATA)
    assert f"format {version}, this release reads 2" in refused(store, error=ModelError)  # whole, not for this release


def test_a_flipped_bit_in_the_formats_number_is_damage(store: SnapshotStore) -> None:
    store.write(STEM, TENSORS, METADATA)
    path = path_of(store)
    path.write_bytes(path.read_bytes().replace(b'\\"version\\": 2', b'\\"version\\": 3'))
    assert "SHA-256" in refused(store)


@pytest.mark.parametrize("content", [b"", b"{}", b"\x80\x04\x95pickle", b"\xff" * 64])
def test_a_file_of_another_kind_is_refused(store: SnapshotStore, content: bytes) -> None:
    store.directory.mkdir(parents=True)
    path_of(store).write_bytes(content)
    refused(store)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["a folder", "a pipe, that nobody writes into"])
def test_what_is_no_file_is_refused(store: SnapshotStore, make: Callable[[Path], None]) -> None:
    store.directory.mkdir(parents=True)
    make(path_of(store))
    refused(store, error=ModelError)
    assert store.about_newest() == {}


# -- disks that refuse -------------------------------------------------------------------------------------------------


def refuses_to_write(store: SnapshotStore, remedy: str = "free the disk") -> str:
    with pytest.raises(SnapshotError) as caught:
        store.write(STEM, {"anchors": torch.zeros(100_000)}, METADATA)
    assert "is not written" in str(caught.value)
    assert remedy in str(caught.value)
    return str(caught.value)


def test_a_file_in_the_folders_place_is_reported(store: SnapshotStore) -> None:
    store.directory.parent.write_text("in the way")
    refuses_to_write(store, "a file stands where a folder belongs: move it away")
    assert store.directory.parent.read_text() == "in the way"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(mounted)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a file system cannot be mounted here: {error}")
    yield mounted
    subprocess.run(["umount", str(mounted)], check=True)  # noqa: S607 - wherever the system keeps it


def test_a_full_disk_leaves_nothing_behind_and_keeps_what_was_there(small_disk: Path) -> None:
    store = SnapshotStore(small_disk, "press-3")
    store.write(stem_of(1, 1), TENSORS, METADATA)
    assert "No space left" in refuses_to_write(store)
    assert files(store) == [f"{stem_of(1, 1)}.safetensors"]
    store.load(stem_of(1, 1))


@contextmanager
def files_of_a_kilobyte() -> Iterator[None]:
    """The system refuses to write more into any file of this process; pytest's own output may be one, so be brief."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_write_that_ends_half_way_leaves_nothing_behind(store: SnapshotStore) -> None:
    with files_of_a_kilobyte():
        refuses_to_write(store)
    assert files(store) == []


@pytest.mark.parametrize("failing", [1, 2], ids=["the file", "the folder"])
def test_a_disk_that_does_not_keep_what_it_took_leaves_nothing_behind(
    store: SnapshotStore, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    calls: list[int] = []
    real = os.fsync

    def fsync(descriptor: Any) -> None:
        calls.append(descriptor)
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr("os.fsync", fsync)
    refuses_to_write(store)
    assert files(store) == []
    store.write(STEM, TENSORS, METADATA)
    store.load(STEM)
