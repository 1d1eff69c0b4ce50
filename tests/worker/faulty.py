"""A store that is full, away or slow when a test says so: faulty://, in memory, by fsspec."""

import errno
import threading
from dataclasses import dataclass, field
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


@dataclass
class Faults:
    """What is wrong with it just now, and what was asked of it."""

    full: bool = False
    away: bool = False
    open: threading.Event = field(default_factory=threading.Event)  # cleared: every call waits
    asked: list[str] = field(default_factory=list)

    def reset(self) -> None:
        self.full = self.away = False
        self.open.set()
        self.asked.clear()


faults = Faults()


class FaultyFileSystem(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    protocol = "faulty"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).replace("faulty://", "memory://"))

    def _pass(self, what: str, path: str) -> None:
        faults.asked.append(f"{what} {path.rpartition('/')[2]}")
        assert faults.open.wait(30)
        if faults.away:
            raise ConnectionError("nobody answers at faulty://")

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        self._pass("write", path)
        if faults.full:
            raise OSError(errno.ENOSPC, "No space left in the bucket")
        super().pipe_file(path, value, mode=mode, **kwargs)

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> bytes:
        self._pass("read", path)
        return bytes(super().cat_file(path, *args, **kwargs))

    def ls(self, path: str, *args: Any, **kwargs: Any) -> Any:
        self._pass("list", path)
        return super().ls(path, *args, **kwargs)

    def rm_file(self, path: str) -> None:
        self._pass("remove", path)
        if self.store.pop(self._strip_protocol(path), None) is None:
            raise FileNotFoundError(path)


fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)


def flip(url: str, name: str) -> None:
    """Flip a bit of an object."""
    fs, root = fsspec.url_to_fs(url)
    (path,) = (path for path in fs.find(root) if path.rpartition("/")[2].startswith(name))
    content = bytearray(fs.cat_file(path))
    content[-1] ^= 1
    fs.pipe_file(path, bytes(content))


def objects(url: str) -> list[str]:
    """Names of all objects below."""
    fs, root = fsspec.url_to_fs(url, use_listings_cache=False)
    return sorted(path.rpartition("/")[2] for path in fs.find(root))
