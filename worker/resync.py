"""A line that was stopped, because its stream has gone back behind what it learned: how it goes on."""

import time

import structlog

from worker.keeper import Keeper
from worker.streams.control import Command, Reply, encode_reply, read_commands

LOOK_SECONDS = 1.0

log = structlog.get_logger()


class Resync:
    """Looks after stopped lines."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}

    def __call__(self, keeper: Keeper, holder: str) -> None:
        """Every second: go on if a person said so, or if the stream is as it was, or another keeper was told to."""
        name = keeper.line.name
        if time.monotonic() < self._at.get(name, 0.0):
            return
        self._at[name] = time.monotonic() + LOOK_SECONDS
        keeper.follow()
        if not keeper.regression():
            keeper.stopped = False
            return
        commands = read_commands(keeper.streams, keeper.line.commands_through)
        names = [command.name for command in commands]
        if "resync" in names:
            keeper.acquire(holder, resync=True)
            if keeper.epoch:
                place = names.index("resync")
                for command in commands[:place]:
                    keeper.line.commands_through = command.entry
                    keeper.refused(encode_reply(command, Reply(False, "the line was stopped; say it again")))
                _go_on(keeper, commands[place])


def _go_on(keeper: Keeper, command: Command) -> None:
    line, last = keeper.line, keeper.streams.last_id()
    text = f"goes on behind {last}; what was learned up to {line.applied_through} is kept"
    line.applied_through, line.commands_through = last, command.entry
    log.warning("resync", line=line.name, by=command.by, text=text)
    keeper.obeyed(encode_reply(command, Reply(True, text)), moved=False, dropped=[])
