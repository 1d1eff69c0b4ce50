"""Snapshots of a line in an object store (fsspec): PREFIX/LINE/..., objects that are written once and never changed."""

import hashlib
import json
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from safetensors import SafetensorError
from safetensors.torch import load as unpack

from worker.errors import AbsentError, ModelError, SnapshotError, StoreError
from worker.failpoints import failpoint
from worker.snapshots import STEM, Kept, Snapshot, SnapshotStore, epoch_of, verified
from worker.storage.objects import Objects

log = structlog.get_logger()


class ObjectStore:
    """The versions of one line, under one prefix.

    A version is two objects: STEM-HASH.safetensors, whose name says what is in it, and then STEM.json, the manifest
    that names it with its size and SHA-256. Both are created, never overwritten, and a stem has the epoch of the one
    keeper that may use it. So whoever sees a manifest sees a whole version. STEM.pin and STEM.bad are marks, empty.

    What was written or read last lies in a folder on this machine, too: it is not read again, and the committed version
    is there when the store is not.
    """

    remote = True

    def __init__(self, url: str, line: str, cache: Path) -> None:
        self.objects = Objects(url, line)
        self.cache = SnapshotStore(cache, line)
        self._highest_epoch = 0

    @property
    def place(self) -> str:
        """For people; an address holds no password."""
        return self.objects.place

    # -- what is there -----------------------------------------------------------------------------------------------

    def stems(self) -> list[str]:
        """All versions, oldest first, without those that were set aside."""
        return _stems(self._names())

    def highest_epoch(self) -> int:
        """Of all versions, as of when they were last listed or written: it is asked where nothing may wait."""
        return self._highest_epoch

    def _names(self) -> set[str]:
        """Of all objects, without the prefix."""
        names = self.objects.names()
        epochs = (epoch_of(name) for name in names if STEM.match(_stem(name)))
        self._highest_epoch = max(self._highest_epoch, *epochs, 0)
        return names

    # -- write -------------------------------------------------------------------------------------------------------

    def put(self, stem: str, content: bytes) -> None:
        """Make a version durable: its object, then its manifest.

        Raises:
            SnapshotError: the store refuses, or already has another version of that name.
        """
        sha256 = hashlib.sha256(content).hexdigest()
        name = f"{stem}-{sha256[:16]}.safetensors"
        manifest = {
            "object": name,
            "bytes": len(content),
            "sha256": sha256,
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "about": {key: value for key, value in _header(content).items() if isinstance(value, str | int | float)},
        }
        try:
            failpoint("upload")
            self.objects.create(name, content)
            failpoint("manifest")
            self.objects.create(f"{stem}.json", json.dumps(manifest).encode())
        except StoreError as error:
            raise SnapshotError(f"snapshot {stem} is not written: {error}") from None
        self._highest_epoch = max(self._highest_epoch, epoch_of(stem))
        self._keep_at_hand(stem, content)

    def _keep_at_hand(self, stem: str, content: bytes) -> None:
        try:
            self.cache.put(stem, content)
        except SnapshotError as error:
            log.warning("snapshots.cache takes no version; a start without the store will fail", error=str(error))
        self.cache.prune(1, stem)

    # -- read --------------------------------------------------------------------------------------------------------

    def load(self, stem: str) -> Snapshot:
        """Read a version and verify it.

        Raises:
            SnapshotError: its checksum does not hold, though it was read twice.
            AbsentError: it was pruned, or never there.
            StoreError: it cannot be read here and now.
            ModelError: it is of another format.
        """
        manifest = self._manifest(stem)
        content = self._cached(stem)
        if content is None or not _is_whole(content, manifest):
            content = self._downloaded(stem, manifest)
            self._keep_at_hand(stem, content)
        return _unpacked(stem, content, f"snapshot {self.place}/{stem}")

    def verify(self, stem: str) -> None:
        """Read a version from the store itself, whatever this machine has of it; raises what `load` raises."""
        _unpacked(stem, self._downloaded(stem, self._manifest(stem)), f"snapshot {self.place}/{stem}")

    def at_hand(self, stem: str) -> Snapshot | None:
        """The version, where the store is not reached and this machine still has it, whole."""
        with suppress(SnapshotError, AbsentError, ModelError):
            return self.cache.load(stem)
        return None

    def _manifest(self, stem: str) -> dict[str, Any]:
        name = f"snapshot {self.place}/{stem}"
        if (text := self.objects.read(f"{stem}.json")) is None:
            raise AbsentError(f"{name} is not there, or not any more")
        try:
            manifest = json.loads(text)
            if not isinstance(manifest["object"], str) or not isinstance(manifest["sha256"], str):
                raise TypeError("object and sha256 are texts")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise SnapshotError(f"{name} is damaged: its manifest is none: {error!r}") from None
        return dict(manifest)

    def _downloaded(self, stem: str, manifest: dict[str, Any]) -> bytes:
        name = f"snapshot {self.place}/{stem}"
        for _ in range(2):  # the way may be at fault
            content = self.objects.read(manifest["object"])
            if content is None:
                self._manifest(stem)  # is it being pruned? then it is absent
                raise SnapshotError(f"{name} is damaged: {manifest['object']} is gone")
            if _is_whole(content, manifest):
                return content
        found = hashlib.sha256(content or b"").hexdigest()
        raise SnapshotError(f"{name} is damaged: SHA-256 {found}, its manifest says {manifest['sha256']}")

    def _cached(self, stem: str) -> bytes | None:
        path = self.cache.directory / f"{stem}.safetensors"
        try:
            return path.read_bytes() if path.is_file() else None  # a pipe would be waited for
        except OSError:
            return None

    # -- tidy --------------------------------------------------------------------------------------------------------

    def mark_bad(self, stem: str) -> None:
        """Set a version aside, so that it is not tried again; a person may look at it."""
        with suppress(StoreError):  # it is found damaged again next time
            self.objects.mark(f"{stem}.bad")

    def prune(self, keep: int, current: str, before: str = "") -> None:
        """Remove what is older than `current`, but the newest `keep`, the one that stood `before` the last change and
        those that are pinned or set aside; with it, what a killed or refused writer left. The manifest goes first, so
        that nobody finds one without its object."""
        try:
            names = self._names()
            spared = [*_stems(names)[-keep:], before]
            for name in sorted(names, key=lambda name: not name.endswith(".json")):
                stem = _stem(name)
                old = STEM.match(stem) and stem < current and stem not in spared
                if old and not {f"{stem}.pin", f"{stem}.bad"} & names and self.objects.read(f"{stem}.pin") is None:
                    self.objects.remove(name)
        except StoreError as error:  # what stays is removed with a later version
            log.warning("old versions are not removed", place=self.place, error=str(error))

    # -- for people --------------------------------------------------------------------------------------------------

    def kept(self) -> list[Kept]:
        """All versions, those that were set aside included, oldest first."""
        names, found = self._names(), list[Kept]()
        for stem in sorted(_stem(name) for name in names if name.endswith(".json") and STEM.match(_stem(name))):
            with suppress(AbsentError):  # pruned meanwhile
                found.append(self._kept(stem, names))
        return found

    def _kept(self, stem: str, names: set[str]) -> Kept:
        try:
            manifest = self._manifest(stem)
            about, size, when = manifest["about"], int(manifest["bytes"]), datetime.fromisoformat(manifest["written"])
        except (SnapshotError, KeyError, ValueError, TypeError):
            about, size, when = {}, 0, datetime.fromtimestamp(0, UTC)
        return Kept(stem, size, when, about, f"{stem}.pin" in names, f"{stem}.bad" in names)

    def about_newest(self) -> dict[str, Any]:
        """What the newest version says of itself, unverified; where the store is not reached, the newest at hand."""
        try:
            newest = self.kept()[-1:]
        except StoreError:
            if about := self.cache.about_newest():
                return about
            raise
        return newest[0].about if newest else {}

    def pin(self, stem: str) -> None:
        """Keep a version, however many come after it; raises AbsentError where there is none of that name."""
        if stem in self.stems():
            self.objects.mark(f"{stem}.pin")
            if stem in self.stems():
                return
            self.objects.remove(f"{stem}.pin")  # it was pruned meanwhile
        there = ", ".join(self.stems()) or "none"
        raise AbsentError(f"version {stem!r:.60} is not in {self.place}; there are {there}")

    def unpin(self, stem: str) -> None:
        """Let it go with the others; raises AbsentError where it is not pinned."""
        pins = sorted(name.removesuffix(".pin") for name in self._names() if name.endswith(".pin"))
        if stem not in pins:
            raise AbsentError(
                f"version {stem!r:.60} is not pinned in {self.place}; pinned are {', '.join(pins) or 'none'}"
            )
        self.objects.remove(f"{stem}.pin")


def _stem(name: str) -> str:
    """Of the version that an object belongs to; of a foreign one anything."""
    return name.partition(".")[0][: len("0000000000-0000000000")]


def _stems(names: set[str]) -> list[str]:
    manifests = (name.removesuffix(".json") for name in names if name.endswith(".json"))
    return sorted(stem for stem in manifests if STEM.match(stem) and f"{stem}.bad" not in names)


def _is_whole(content: bytes, manifest: dict[str, Any]) -> bool:
    return bool(hashlib.sha256(content).hexdigest() == manifest["sha256"])


def _header(content: bytes) -> dict[str, Any]:
    """The metadata in safetensors' header: its length in 8 bytes, and as much JSON."""
    length = int.from_bytes(content[:8], "little")
    manifest = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["mhpc"])
    return dict(manifest)


def _unpacked(stem: str, content: bytes, name: str) -> Snapshot:
    try:
        tensors, manifest = unpack(content), _header(content)
        expected = manifest.pop("sha256")
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise SnapshotError(f"{name} is damaged: {error!r}") from None
    return verified(Snapshot(stem, tensors, manifest), expected, name)
