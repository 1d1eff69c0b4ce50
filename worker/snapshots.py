"""Snapshots of a line: DIR/LINE/EPOCH-SEQ.safetensors, whole or not there."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import structlog
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from worker.errors import AbsentError, ModelError, SnapshotError, StoreError
from worker.failpoints import failpoint
from worker.storage.folders import fsync_folder, listed, not_listed, remedy

VERSION = 2  # 1 knew no commands, no pinned anchors and no recent scores
STEM = re.compile(r"^(\d{10})-(\d{10})$")

log = structlog.get_logger()


class Snapshot(NamedTuple):
    """Tensors, and what goes with them; `stem` names the version."""

    stem: str
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


class Kept(NamedTuple):
    """What a store says of a version, unverified; `about` is empty where it cannot be read."""

    stem: str
    bytes: int
    when: datetime
    about: dict[str, Any]
    pinned: bool
    bad: bool


def stem_of(epoch: int, seq: int) -> str:
    """Zero-padded, so that names sort as versions do."""
    return f"{epoch:010d}-{seq:010d}"


def epoch_of(stem: str) -> int:
    return int(stem.partition("-")[0])


class SnapshotStore:
    """The versions of one line, in a folder of their own.

    A version is written as: temporary file in the same folder -> fsync -> rename -> fsync of the folder. So whoever
    lists the folder sees whole files only, and one that was reported written survives a power cut. A folder that cannot
    be listed is not an empty one: whatever needs to know what is there raises StoreError then.
    """

    remote = False  # it answers in a moment

    def __init__(self, directory: Path, line: str) -> None:
        self.directory = directory / line

    @property
    def place(self) -> str:
        """For people."""
        return os.path.realpath(self.directory)  # of a link that leads nowhere, too

    def stems(self) -> list[str]:
        """All versions on disk, oldest first."""
        return [path.stem for path in self._versions() if path.suffix == ".safetensors"]

    def highest_epoch(self) -> int:
        """Of all versions that ever lay here and were not pruned, those that were set aside included."""
        return max((epoch_of(path.stem) for path in self._versions()), default=0)

    def _versions(self) -> list[Path]:
        """Files that bear a version's name, whatever their suffix, oldest first."""
        return sorted(path for path in listed(self.directory) if STEM.match(path.stem))

    def write(self, stem: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Make a version durable.

        Raises:
            SnapshotError: it could not be written (a full or read-only disk); nothing is left behind.
        """
        self.put(stem, packed(tensors, metadata))

    def put(self, stem: str, content: bytes) -> None:
        """Make a packed version durable; raises SnapshotError as `write` does, and leaves nothing behind."""
        path = self.directory / f"{stem}.safetensors"
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            if not self.directory.is_dir():
                self.directory.mkdir(parents=True)
                fsync_folder(self.directory.parent)
            failpoint("temporary")
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                failpoint("fsync")
                os.fsync(file.fileno())
            failpoint("rename")
            temporary.rename(path)
            fsync_folder(self.directory)
        except OSError as error:
            for leftover in (temporary, path):
                with suppress(OSError):
                    leftover.unlink(missing_ok=True)
            mend = remedy(error, "free the disk or mend its rights")
            raise SnapshotError(f"snapshot {path} is not written: {error}; {mend}") from None

    def load(self, stem: str) -> Snapshot:
        """Read a version and verify it.

        Raises:
            SnapshotError: it is cut off, or its checksum does not hold.
            AbsentError: it was pruned, or never there.
            StoreError: its folder cannot be listed.
            ModelError: it may well be whole, but cannot be read here and now: its rights, the disk, another format.
        """
        path = self.directory / f"{stem}.safetensors"
        try:
            if path.exists() and not path.is_file():  # whoever opens a pipe waits for ever
                raise ModelError(f"snapshot {path} is no file, expected what a worker has written; move it away")
            path.open("rb").close()  # safetensors says of whatever it cannot open that it is absent
            with safe_open(path, framework="pt") as file:
                manifest = json.loads((file.metadata() or {})["mhpc"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            expected = manifest.pop("sha256")
        except FileNotFoundError:
            raise AbsentError(f"snapshot {path} is not there, or not any more") from None
        except OSError as error:
            listed(self.directory)  # where it is the folder that refuses, this says so
            mend = remedy(error, "mend its rights or the disk")
            raise ModelError(f"snapshot {path} cannot be read: {error}; {mend}") from None
        except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise SnapshotError(f"snapshot {path} is damaged: {error!r}") from None
        return verified(Snapshot(stem, tensors, manifest), expected, f"snapshot {path}")

    def verify(self, stem: str) -> None:
        """Read a version and forget it; raises what `load` raises."""
        self.load(stem)

    def at_hand(self, stem: str) -> Snapshot | None:
        """What is left of a version where the store is not reached, which a disk always is."""
        return None

    def mark_bad(self, stem: str) -> None:
        """Set a version aside, so that it is not tried again; a person may look at it."""
        path = self.directory / f"{stem}.safetensors"
        with suppress(OSError):  # a folder that cannot be written: it is found damaged again next time
            path.rename(path.with_suffix(".bad"))
            fsync_folder(self.directory)

    def prune(self, keep: int, current: str, before: str = "") -> None:
        """Remove all but the newest `keep`, `current`, the one that stood `before` the last change and those that are
        pinned, and what a killed writer left."""
        spared = (current, before)
        try:
            old = [self._path(stem) for stem in self.stems()[:-keep] if stem not in spared and not self.pinned(stem)]
            old += [path for path in listed(self.directory) if path.suffix == ".tmp"]
        except StoreError as error:  # what stays is removed with a later version
            log.warning("old versions are not removed", place=self.place, error=str(error))
            return
        for path in old:
            with suppress(OSError):  # likewise
                path.unlink(missing_ok=True)

    # -- for people --------------------------------------------------------------------------------------------------

    def files(self) -> list[Path]:
        """Of all versions, those that were set aside included, oldest first."""
        return [path for path in self._versions() if path.suffix in (".safetensors", ".bad")]

    def kept(self) -> list[Kept]:
        """All versions, those that were set aside included, oldest first."""
        found = list[Kept]()
        for path in self.files():
            try:
                stat = path.stat()
            except FileNotFoundError:  # pruned meanwhile
                continue
            except OSError as error:
                raise not_listed(self.directory, error) from None
            when = datetime.fromtimestamp(stat.st_mtime, UTC)
            bad = path.suffix == ".bad"
            found.append(Kept(path.stem, stat.st_size, when, _about(path), self.pinned(path.stem), bad))
        return found

    def about_newest(self) -> dict[str, Any]:
        """What the newest version says of itself, unverified; nothing where there is none, or it cannot be read."""
        return next((_about(path) for path in self.files()[-1:]), {})

    def pinned(self, stem: str) -> bool:
        return self._path(stem, ".pin") in listed(self.directory)

    def pin(self, stem: str) -> None:
        """Keep a version, however many come after it.

        Raises:
            AbsentError: there is none of that name.
            SnapshotError: the folder cannot be written.
        """
        if stem in self.stems():
            self._mark(stem, Path.touch)
            if stem in self.stems():
                return
            self._mark(stem, Path.unlink)  # it was pruned meanwhile
        there = ", ".join(self.stems()) or "none"
        raise AbsentError(f"version {stem!r:.60} is not in {self.place}; there are {there}")

    def unpin(self, stem: str) -> None:
        """
        Raises:
            AbsentError: it is not pinned.
            SnapshotError: the folder cannot be written.
        """
        if not STEM.match(stem) or not self.pinned(stem):
            pins = ", ".join(sorted(path.stem for path in listed(self.directory) if path.suffix == ".pin")) or "none"
            raise AbsentError(f"version {stem!r:.60} is not pinned in {self.directory}; pinned are {pins}")
        self._mark(stem, Path.unlink)

    def _mark(self, stem: str, change: Callable[[Path], None]) -> None:
        path = self._path(stem, ".pin")
        try:
            change(path)
            fsync_folder(self.directory)
        except OSError as error:
            mend = remedy(error, "mend the rights of its folder")
            raise SnapshotError(f"{path} cannot be changed: {error}; {mend}") from None

    def _path(self, stem: str, suffix: str = ".safetensors") -> Path:
        return self.directory / f"{stem}{suffix}"


def _about(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():  # as above
            return {}
        with safe_open(path, framework="pt") as file:
            manifest = json.loads((file.metadata() or {})["mhpc"])
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def packed(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    """A version as bytes, with its digest."""
    manifest = {**metadata, "version": VERSION}
    manifest["sha256"] = _digest(tensors, manifest)
    content: bytes = save(dict(tensors), {"mhpc": json.dumps(manifest)})
    return content


def verified(snapshot: Snapshot, expected: str, name: str) -> Snapshot:
    """What was read, if it is what was written.

    Args:
        snapshot: its metadata is the manifest without the digest.
        expected: that digest.

    Raises:
        SnapshotError: it is not.
        ModelError: it is of another format.
    """
    # The digest before the format, by a rule that all formats share: a flipped bit in the number is damage.
    try:
        found = _digest(snapshot.tensors, snapshot.metadata)
    except RecursionError as error:  # of a manifest that could just be read
        raise SnapshotError(f"{name} is damaged: {error!r}") from None
    if found != expected:
        raise SnapshotError(f"{name} is damaged: SHA-256 {found}, its manifest says {expected}")
    if (version := snapshot.metadata.get("version")) != VERSION:
        raise ModelError(
            f"{name} has format {version}, this release reads {VERSION}; use one that fits, "
            "or learn anew under another line name"
        )
    return snapshot


def _digest(tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> str:
    """SHA-256 over the manifest and the tensors' names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
