"""A folder of versions that cannot be listed is told, and never taken for an empty one."""

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.worker.helpers import eventually
from tests.worker.keepers import ENTRIES, HOLDER, MakeKeeper, add, learn_all, opened
from tests.worker.playing import answered, send
from tests.worker.test_snapshots import METADATA, STEM, TENSORS, path_of
from tests.worker.turning import Run, get
from worker.errors import ModelError, SnapshotError, StoreError
from worker.snapshots import SnapshotStore, stem_of
from worker.storage.folders import listed
from worker.streams.line_streams import LineStreams
from worker.views import line_status

NOBODY = 65534


@contextmanager
def without_rights(folder: Path) -> Iterator[None]:
    """Whoever runs the tests may not enter it; root would whatever its mode."""
    folder.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


@contextmanager
def in_a_loop(folder: Path) -> Iterator[None]:
    """As a link leads nowhere: the system refuses it, to root, too."""
    aside = folder.with_name(f"{folder.name}-aside")
    folder.rename(aside)
    folder.symlink_to(folder)
    try:
        yield
    finally:
        folder.unlink()
        aside.rename(folder)


def holds(store: SnapshotStore, *seqs: int) -> SnapshotStore:
    for seq in seqs:
        store.write(stem_of(3, seq), TENSORS, METADATA)
    return store


@pytest.mark.parametrize("refusing", [without_rights, in_a_loop])
def test_a_folder_that_refuses_is_told_whatever_is_asked_of_it(tmp_path: Path, refusing: Callable[[Path], Any]) -> None:
    store = holds(SnapshotStore(tmp_path, "press-3"), 7)
    asking: list[Callable[[], object]] = [store.stems, store.highest_epoch, store.files, store.kept, store.about_newest]
    asking += [lambda: store.load(STEM), lambda: store.pin(STEM), lambda: store.unpin(STEM)]
    with refusing(store.directory):
        for ask in asking:
            with pytest.raises(StoreError, match=r"press-3 cannot be listed: \[Errno \d+\] .*; expected a folder"):
                ask()
    assert (store.stems(), store.highest_epoch()) == ([STEM], 3)


def test_a_folder_that_is_absent_holds_nothing_and_a_file_in_its_place_is_told(tmp_path: Path) -> None:
    assert listed(tmp_path / "press-3") == []
    (tmp_path / "press-3").write_text("in the way")
    with pytest.raises(StoreError, match=r"cannot be listed: .*: a file stands where a folder belongs: move it away"):
        listed(tmp_path / "press-3")
    with pytest.raises(SnapshotError, match=r"is not written: .*; a file stands where a folder belongs: move it away"):
        holds(SnapshotStore(tmp_path, "press-3"), 7)


def test_a_version_that_is_there_and_cannot_be_opened_is_not_taken_for_an_absent_one(tmp_path: Path) -> None:
    store = holds(SnapshotStore(tmp_path, "press-3"), 7)
    with in_a_loop(path_of(store)), pytest.raises(ModelError, match=r"cannot be read: .*; mend its rights or the disk"):
        store.load(STEM)
    store.load(STEM)


def test_where_too_many_files_are_open_the_disk_is_not_blamed(tmp_path: Path) -> None:
    store = holds(SnapshotStore(tmp_path, "press-3"), 7)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))  # at least as many are open
    try:
        with pytest.raises(SnapshotError) as unwritten:
            holds(store, 8)
        with pytest.raises(ModelError) as unread:
            store.load(STEM)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    for told in (str(unwritten.value), str(unread.value)):
        assert "Too many open files" in told
        assert "LimitNOFILE" in told
        assert "disk" not in told.partition("Too many")[2]
    store.load(STEM)


def test_of_a_folder_that_refuses_nothing_is_pruned_until_it_can_be_listed(tmp_path: Path) -> None:
    store = holds(SnapshotStore(tmp_path, "press-3"), 5, 6, 7)
    with in_a_loop(store.directory):
        store.prune(2, STEM)
    assert len(store.stems()) == 3
    store.prune(2, STEM)
    assert store.stems() == [stem_of(3, 6), STEM]


def test_beside_a_folder_that_refuses_no_line_begins_anew_on_a_wiped_server(
    make_keeper: MakeKeeper, streams: LineStreams, tmp_path: Path
) -> None:
    add(streams, *ENTRIES[:8])
    learn_all(opened(make_keeper()))
    streams.client.delete(streams.images, streams.state_key, streams.lease)
    streams.ensure_groups()
    refused = make_keeper()
    with in_a_loop(tmp_path / streams.line), pytest.raises(StoreError, match="cannot be listed"):
        refused.acquire(HOLDER)
    assert (refused.epoch, streams.state(), streams.client.exists(streams.lease)) == (0, {}, 0)
    again = opened(make_keeper())
    assert (again.epoch, again.line.applied_through) == (2, "8-0")


def test_a_folder_that_refuses_is_its_lines_trouble_alone(
    run: Run, settings: Any, client: redis.Redis, line: str, tmp_path: Path
) -> None:
    other = f"{line}-other"
    folder = tmp_path / "snapshots" / line
    folder.mkdir(parents=True)
    with in_a_loop(folder):
        worker = run(settings(line, other))
        for name in (line, other):
            send(client, name, 1, 8)
        assert answered(client, other, 8)
        eventually(lambda: f"line {line}: the store of its versions cannot be asked" in get(worker, "/readyz")[1])
        assert "mend its rights or the disk" in get(worker, "/readyz")[1]
        assert "mend its rights or the disk" in eventually(lambda: line_status(client, line)["problem"])
        assert client.xlen(LineStreams(client, line).scores) == 0
    assert answered(client, line, 8)
    eventually(lambda: get(worker, "/readyz")[0] == 200)
