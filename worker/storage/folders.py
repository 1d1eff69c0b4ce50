"""A folder whose files are whole or not there: what lies in it, and its durability."""

import errno
import os
from pathlib import Path

from worker.errors import StoreError


def listed(directory: Path) -> list[Path]:
    """What lies in a folder; one that is absent has nothing.

    Raises:
        StoreError: it cannot be told, which is not the same: who took it for empty would give epochs a second time.
    """
    try:
        return list(directory.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise not_listed(directory, error) from None


def not_listed(directory: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{directory} cannot be listed: {error}; expected a folder that this user may read and enter: "
        f"{remedy(error, 'mend its rights or the disk')}"
    )


def remedy(error: OSError, otherwise: str) -> str:
    """What mends it; where too many files are open, or a file stands in the way, the disk is not at fault."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "end what holds so many files or connections, or raise how many may be open (LimitNOFILE=, ulimit -n)"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return "a file stands where a folder belongs: move it away, or, where it is a link, mount what it leads to"
    return otherwise


def fsync_folder(directory: Path) -> None:
    """Make durable which names it holds."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
