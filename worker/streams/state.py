"""A line's state hash, as a worker goes by it; and how a person has the line begin again."""

import re

from worker.errors import StateError
from worker.streams.line_streams import LineStreams, entry_key

ENTRY_ID = re.compile(r"[0-9]{1,20}-[0-9]{1,20}\Z")
EPOCH = re.compile(r"[0-9]{1,15}\Z")  # Lua counts in doubles
IDS = {
    "commands_through": "of the last command that was obeyed",
    "applied_through": "of the last entry that was learned from",
    "done_through": "of the last entry that is answered",
}


def read_state(streams: LineStreams) -> dict[str, str]:
    """The state; its ids and its epoch can be read.

    Raises:
        StateError: one cannot.
    """
    state, key = streams.state(), streams.state_key
    if "epoch" in state and not EPOCH.match(state["epoch"]):
        raise StateError(
            f"{key} has epoch {state['epoch']!r:.60}, expected a whole number: HSET it to one above that of every "
            "version of the line, which is what their names begin with"
        )
    for field, which in IDS.items():
        if field in state and not _is_id(state[field]):
            raise StateError(
                f"{key} has {field} {state[field]!r:.60}, expected an entry id such as 1718000000000-0: HSET it to the "
                f"id {which}"
            )
    return state


def _is_id(text: str) -> bool:
    return bool(ENTRY_ID.match(text)) and max(entry_key(text)) < 2**64


def learn_anew(place: str, streams: LineStreams) -> str:
    """How a person has a line begin again; its epoch goes on, and no command is obeyed twice."""
    return f"move {place} away and HDEL {streams.state_key} model"
