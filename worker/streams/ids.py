"""Ids of entries, names of holders, and keys of lines, as they stand in Redis."""

import re
from datetime import UTC, datetime

FROM_START, LAST = "0-0", f"{2**64 - 1}-{2**64 - 1}"  # behind the last one a stream takes no entry
ENTRY_ID = re.compile(r"[0-9]{1,20}-[0-9]{1,20}\Z")


def line_key(line: str, what: str) -> str:
    """The key of one of a line's streams, of its state or its lease: all of a line's are in one slot of a Cluster."""
    return f"mhpc:{{{line}}}:{what}"


def worker_of(holder: str) -> str:
    """The name of the worker that holds a lease: a holder is NAME#INSTANCE."""
    return holder.rpartition("#")[0]


def is_entry_id(text: str) -> bool:
    """Whether it is an entry's id in full: two numbers of 64 bits."""
    return bool(ENTRY_ID.match(text)) and max(entry_key(text)) < 2**64


def entry_key(entry: str) -> tuple[int, int]:
    """An entry id, so that it sorts as Redis sorts."""
    ms, _, seq = entry.partition("-")
    return int(ms), int(seq or 0)


def entry_time(entry: str) -> str | None:
    """When it was added, by Redis's clock, as ISO 8601; None where no calendar has it: an id may be given by hand."""
    try:
        return datetime.fromtimestamp(entry_key(entry)[0] / 1000, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return None


def entry_before(entry: str) -> str:
    """The largest id below this one."""
    ms, seq = entry_key(entry)
    return f"{ms}-{seq - 1}" if seq else f"{ms - 1}-{2**64 - 1}" if ms else FROM_START
