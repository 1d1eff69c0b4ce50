"""Redis has another state than its keeper knows: what became of it, and how a line that was stopped for it goes on."""

import time

import structlog

from worker.errors import FencedError
from worker.keeping.keeper import Keeper
from worker.streams.control import Command, Reply, encode_reply, read_commands
from worker.streams.ids import entry_key, worker_of
from worker.streams.line_streams import LEARNING
from worker.streams.state import read_state

LOOK_SECONDS = 1.0

log = structlog.get_logger()


def lost_meanwhile(keeper: Keeper) -> str:
    """After a connection was lost: what Redis lacks of what this keeper wrote there; "" for nothing.

    Raises:
        FencedError: another keeper took over.
    """
    keeper.lease.doubt()
    keeper.doubt()
    state = read_state(keeper.streams)
    keeper.stay_within(state)
    if not keeper.epoch:
        return ""
    epoch, holder = int(state.get("epoch", 0)), state.get("holder", "")
    if epoch > keeper.epoch or (epoch == keeper.epoch and holder not in ("", keeper.streams.holder)):
        name = worker_of(holder) or "another worker"
        raise FencedError(f"line {keeper.line.name}: {name} took over meanwhile, under epoch {epoch}")
    if epoch < keeper.epoch or state.get("model", "") != keeper.model or keeper.regression() or _lacks_readings(keeper):
        return "Redis lost writes: it has an older epoch, another version, fewer entries, or fewer that were read"
    return ""


def _lacks_readings(keeper: Keeper) -> bool:
    """Whether what was learned from was never read, as Redis has it: new entries may have come since, so that the
    stream ends behind it all the same. A line that scores has no more in hand than its version has."""
    if not keeper.line.learns:
        return False
    infos = keeper.streams.client.xinfo_groups(keeper.streams.images)
    read = [info["last-delivered-id"].decode() for info in infos if info["name"] == LEARNING.encode()]
    return any(entry_key(each) < entry_key(keeper.line.applied_through) for each in read)


class Resync:
    """Looks after stopped lines."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}

    def __call__(self, keeper: Keeper, holder: str) -> None:
        """Every second: go on if a person said so, or if Redis is as it was, or another keeper was told to."""
        name = keeper.line.name
        if time.monotonic() < self._at.get(name, 0.0):
            return
        self._at[name] = time.monotonic() + LOOK_SECONDS
        if not keeper.follow():
            return
        if _is_back(keeper):
            keeper.stopped = False
            return
        commands = _up_to_resync(keeper)
        if commands:
            keeper.acquire(holder, resync=True)
            if keeper.epoch and not keeper.unused:  # else newer entries came just now: it is not stopped any more
                for command in commands[:-1]:
                    keeper.line.commands_through = command.entry
                    refusal = Reply(False, command.problem or "the line was stopped; say it again")
                    keeper.answer_refusal(encode_reply(command, refusal))
                _go_on(keeper, commands[-1])


def _is_back(keeper: Keeper) -> bool:
    """Whether Redis has again what this keeper has loaded, and all that was learned from; or it knows of no version."""
    return not keeper.halt() and keeper.streams.state().get("model", "") in ("", keeper.model)


def _up_to_resync(keeper: Keeper) -> list[Command]:
    """The commands up to the first `resync`, however many were sent to the stopped line before it; none without one."""
    commands, after = list[Command](), keeper.line.commands_through
    while page := read_commands(keeper.streams, after):
        for command in page:
            commands.append(command)
            if command.name == "resync" and not command.problem:
                return commands
        after = page[-1].entry
    return []


def _go_on(keeper: Keeper, command: Command) -> None:
    keeper.streams.ensure_groups()  # one beyond the end would read nothing that is new
    line, last = keeper.line, keeper.streams.last_id()
    text = f"goes on behind {last}; what was learned up to {line.applied_through} is kept"
    line.applied_through, line.commands_through = last, command.entry
    log.warning("resync", line=line.name, by=command.by, text=text)
    keeper.commit_command(encode_reply(command, Reply(True, text)), moved=False, dropped=[])
