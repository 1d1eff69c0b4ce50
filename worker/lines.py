"""The lines that this worker serves; they come and go while it runs."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from worker.alike import FIELD, digest
from worker.keeping.keeper import Keeper
from worker.keeping.looking import Look
from worker.metrics import Metrics
from worker.settings import LineConfig, Settings
from worker.streams.line_streams import LineStreams

LINES_OWN = {"lines", "learning", "calibration", "scoring"}  # what can change without a restart, beside bank_size


class Lines:
    """Opened lines by name. The mappings are shared with those who read and publish."""

    def __init__(
        self, make: Callable[[LineConfig], Keeper], metrics: Metrics, facts: Mapping[str, str] | None = None
    ) -> None:
        self.make = make
        self.metrics = metrics
        self.facts = facts or {}  # shown with each line's state, to producers that would send an entry again
        self.configs: dict[str, LineConfig] = {}
        self.keepers: dict[str, Keeper] = {}
        self.looks: dict[str, Look] = {}
        self.streams: dict[str, LineStreams] = {}
        self.weights: dict[str, float] = {}

    def open(self, config: LineConfig) -> Keeper:
        name = config.name
        self.metrics.open_line(name)
        self.configs[name], self.weights[name] = config, config.weight
        self.keepers[name] = keeper = self.make(config)
        self.looks[name] = Look(keeper, {**self.facts, FIELD: digest(config)})
        self.streams[name] = keeper.streams
        # Asked for at each scrape, on another thread: a work loop that hangs is told of, too.
        self.metrics.line_keeper.labels(name).set_function(lambda: bool(keeper.epoch) and keeper.lease.held)
        owed = self.metrics.snapshot_owed_seconds.labels(name)
        owed.set_function(lambda: keeper.schedule.owed_seconds if keeper.epoch and keeper.lease.held else 0.0)
        return keeper

    def close(self, name: str) -> None:
        """Forget a line that was drained; its metrics would tell of nothing."""
        for by_name in (self.configs, self.weights, self.keepers, self.looks, self.streams):
            by_name.pop(name)
        self.metrics.close_line(name)

    def cut_off(self) -> None:
        """Redis is not reached: drop what only it tells, and what is for another keeper to tell by now."""
        for name, keeper in self.keepers.items():
            self.metrics.forget_backlog(name)
            if not keeper.lease.held:
                self.metrics.forget_keeping(name)

    @property
    def problems(self) -> dict[str, str]:
        """What keeps lines from being kept, or fed; asked for on other threads, while lines come and go."""
        keepers = dict(self.keepers).items()
        found = {name: k.problem or (k.upkeep.problem if k.epoch else "") for name, k in keepers}
        return {name: problem for name, problem in found.items() if problem}

    def changes(self, wanted: Iterable[LineConfig]) -> tuple[list[str], list[LineConfig]]:
        """Names of the lines to be closed, and those to be opened after that; one configured otherwise is both."""
        now = {config.name: config for config in wanted}
        gone = [name for name, config in self.configs.items() if now.get(name) != config]
        return gone, [config for name, config in now.items() if self.configs.get(name) != config]


def needing_a_restart(old: Settings, new: Settings) -> list[str]:
    """Sections and keys that differ and are the process's own, dotted."""
    was, now = (_flat(settings.model_dump(exclude=LINES_OWN)) for settings in (old, new))
    return sorted(key for key in {*was, *now} - {"model.bank_size"} if was.get(key) != now.get(key))


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found
