"""A line's state hash, as a worker goes by it; and how a person has the line begin again."""

import re
from collections.abc import Mapping

from worker.errors import StateError
from worker.streams.client import script
from worker.streams.ids import is_entry_id
from worker.streams.line_streams import LineStreams

# A version's name holds 10 digits: one less leaves room for steps, and for those that are left out after a failover.
EPOCH = re.compile(r"0?[0-9]{1,9}\Z")  # with the zero that stands before them in such a name
IDS = {
    "commands_through": "of the last command that was obeyed",
    "applied_through": "of the last entry that was learned from",
    "done_through": "before the first entry in its stream of images, or to 0-0 where that is not known; a group that "
    "is gone begins there, and answers again what nobody trimmed",
}


def read_state(streams: LineStreams) -> dict[str, str]:
    """The state; its ids and its epoch can be read.

    Raises:
        StateError: it names all that cannot.
    """
    state = streams.state()
    if told := unreadable(streams.state_key, state):
        raise StateError("; ".join(told.values()))
    return state


def unreadable(key: str, state: Mapping[str, str]) -> dict[str, str]:
    """What is to be said, by field, where the epoch or an id of a state makes no sense. None is to be deleted: an epoch
    would be given again, and a command obeyed twice."""
    told = dict[str, str]()
    if "epoch" in state and not EPOCH.match(state["epoch"]):
        told["epoch"] = (
            f"{key} has epoch {state['epoch']!r:.60}, expected a whole number of at most 9 digits: HSET it to one "
            "above that of every version of the line, which is what their names begin with"
        )
    for field, which in IDS.items():
        if field in state and not is_entry_id(state[field]):
            told[field] = (
                f"{key} has {field} {state[field]!r:.60}, expected an entry id such as 1718000000000-0: HSET it to the "
                f"id {which}"
            )
    return told


def tell_unkept(streams: LineStreams, why: str) -> None:
    """Have the state say why a worker does not keep the line, where nobody does; it holds for the epoch that is."""
    streams.client.register_script(script("unkept"))(keys=[streams.lease, streams.state_key], args=[why])


def learn_anew(place: str, streams: LineStreams) -> str:
    """How a person has a line begin again; its epoch goes on, and no command is obeyed twice."""
    return f"move {place} away and HDEL {streams.state_key} model"
