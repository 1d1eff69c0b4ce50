"""Objects below one prefix of a store that fsspec reaches: S3, Google's, Azure's, and others."""

import secrets
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any, TypeVar

import fsspec
from fsspec.registry import known_implementations

from worker.errors import ConfigurationError, StoreError, one_line

T = TypeVar("T")


class Objects:
    """All calls block, and raise StoreError where the store cannot be asked or refuses, whatever its library raises."""

    def __init__(self, url: str, folder: str) -> None:
        self.url = url
        self.place = f"{url}/{folder}"  # for people; an address holds no password
        self.folder = folder

    def names(self) -> set[str]:
        """Of all objects, without the prefix."""

        def listed(fs: Any, root: str) -> set[str]:
            try:
                return {str(path).rpartition("/")[2] for path in fs.ls(root, detail=False)}
            except FileNotFoundError:  # no object, no folder
                return set()

        return self._asked("listed", listed)

    def create(self, name: str, content: bytes) -> None:
        """Write an object that is not there; one that is there with this content is this one's, its reply was lost."""

        def created(fs: Any, root: str) -> None:
            try:
                fs.pipe_file(f"{root}/{name}", content, mode="create")
            except OSError:  # not every store's package says that it is there by FileExistsError
                if found(fs, f"{root}/{name}") != content:
                    raise

        self._asked("written", created)

    def mark(self, name: str) -> None:
        """Write an empty object."""
        self._asked("written", lambda fs, root: fs.pipe_file(f"{root}/{name}", b""))

    def read(self, name: str) -> bytes | None:
        """An object; None where there is none."""

        return self._asked("read", lambda fs, root: found(fs, f"{root}/{name}"))

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""

        def removed(fs: Any, root: str) -> None:
            try:
                fs.rm_file(f"{root}/{name}")
            except FileNotFoundError:
                return

        self._asked("removed", removed)

    def _asked(self, what: str, ask: Callable[[Any, str], T]) -> T:
        fs, root = file_system(self.url)
        try:
            return ask(fs, f"{root}/{self.folder}")
        except Exception as error:
            told = one_line(f"{type(error).__name__}: {error}", 300).rstrip(" :")
            raise StoreError(f"{self.place} cannot be {what}: {told}; mend it, or this worker's rights there") from None


def found(fs: Any, path: str) -> bytes | None:
    try:
        return bytes(fs.cat_file(path))
    except FileNotFoundError:
        return None


def probe(url: str) -> None:
    """Write, read and remove an object; raises StoreError where the store does not keep what is written to it."""
    objects, name = Objects(url, ".mhpc-check"), secrets.token_hex(8)
    objects.create(name, b"mhpc")
    try:
        if objects.read(name) != b"mhpc" or name not in objects.names():
            raise StoreError(f"{url} does not give back what was written to it")
        with suppress(StoreError):  # as it should
            objects.create(name, b"another")
        if objects.read(name) != b"mhpc":
            raise StoreError(f"{url} overwrites an object that is to be created; its versions would not be safe")
    finally:
        objects.remove(name)


@lru_cache
def file_system(url: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it.

    Raises:
        ConfigurationError: a package is missing, or nobody knows such an address.
    """
    protocol = url.partition("://")[0]
    try:
        fs, root = fsspec.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        package = str(known_implementations.get(protocol, {}).get("class", "")).partition(".")[0]
        remedy = f"pip install {package}" if package not in ("", "fsspec") else one_line(error, 200)
        raise ConfigurationError(f"snapshots.directory {url}: {protocol}:// needs a package: {remedy}") from None
    except Exception as error:
        told = one_line(f"{type(error).__name__}: {error}", 200)
        raise ConfigurationError(
            f"snapshots.directory {url} cannot be used: {told}; expected an address that fsspec knows, such as "
            "s3://BUCKET/PREFIX, and the options of its package in the environment"
        ) from None
    return fs, root.rstrip("/")
