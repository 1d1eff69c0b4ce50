"""A fleet: lines that are declared in Redis, answered by all its workers, and kept by one each, shared out evenly."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

import redis
import structlog

from worker.alike import Alike, digest
from worker.configuration import line_settings
from worker.errors import ConfigurationError, one_line, printable
from worker.keeping.keeper import Keeper
from worker.metrics import Metrics
from worker.settings import LINES_KEY, WORKERS_KEY, LineConfig, LineSettings, Settings, line_configs
from worker.streams.client import script

LOOK_SECONDS = 2.0
GONE_SECONDS = 20  # not announced for so long, a worker is gone; its leases end about then, and find room elsewhere
FORGOTTEN_SECONDS = 7 * 24 * 3600  # and after so long its announcement goes; who misses its own takes Redis for wiped
LET_GO_SECONDS = 0.25  # in a turn: each that goes may want a snapshot
ORPHAN_SECONDS = 10.0  # kept by nobody for so long, a line is taken beyond the share
NO_LINES = (
    'no lines: add a table [[lines]] with a name, such as name = "press-3", or set worker.fleet = true and declare '
    "some by mhpc-worker lines add"
)
WIPED = "it is gone, as is what this worker said of itself: Redis lost them; the lines go on, declare them again"
OTHERWISE = (
    "a worker of the fleet is another release, or configured otherwise: a line is as its keeper is told; let all have "
    "the same [model], [learning], [calibration] and [scoring]"
)

log = structlog.get_logger()


def require_lines(settings: Settings) -> None:
    """Raise ConfigurationError where a worker's own file has no lines; only one of a fleet may have none."""
    if not settings.lines and not settings.worker.fleet:
        raise ConfigurationError(NO_LINES)


def declared(found: Mapping[bytes, bytes]) -> tuple[dict[str, LineSettings], dict[str, str]]:
    """The lines of the hash, and by name what is wrong with those that cannot be used."""
    good, problems = dict[str, LineSettings](), dict[str, str]()
    for field, value in sorted(found.items()):
        name = field.decode(errors="replace")
        try:
            good[name] = line_settings(name, value, f"declared in {LINES_KEY}")
        except ConfigurationError as error:
            problems[name] = str(error)
    return good, problems


def shares(lines: int, capacities: Mapping[str, int]) -> dict[str, int]:
    """How many lines each worker keeps: no more than its capacity, else within one of even; all of them if they fit."""
    found = dict[str, int]()
    for place, name in enumerate(sorted(capacities, key=lambda name: (capacities[name], name))):
        found[name] = min(capacities[name], lines // (len(capacities) - place))
        lines -= found[name]
    return found


def announced(found: Mapping[bytes, bytes]) -> dict[str, dict[str, Any]]:
    """What workers said of themselves, by name; what another release, or a stranger, put there counts for nobody."""
    workers = dict[str, dict[str, Any]]()
    for field, value in found.items():
        try:
            about = json.loads(value)
            if about["at"] >= 0 and type(about["capacity"]) is int and about["capacity"] >= 0:
                workers[field.decode()] = about
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    return workers


def _digest(settings: Settings) -> str:
    """Of what lines take from the worker's own sections, and of the release: it should be alike in all the fleet."""
    told = settings.model_dump_json(
        include={"model", "learning", "calibration", "scoring"},
        exclude={"model": {"weights", "max_batch", "max_wait_ms"}},  # a machine's own
    )
    return hashlib.sha256(f"{version('mhpc')} {told}".encode()).hexdigest()[:12]


class Fleet:
    """One worker's part of it; one that is in none has the lines of its file alone, and keeps all it can."""

    def __init__(self, client: Any, settings: Settings, holder: str, metrics: Metrics) -> None:
        self.client = client
        self._announce = client.register_script(script("announce"))
        self.settings = settings
        self.holder, self.name = holder, settings.worker.name
        self.metrics = metrics
        self.alike = Alike(metrics)
        self.changed = False  # other lines are wanted than when `wanted` was asked
        self.problems: dict[str, str] = {}  # "line NAME" or a key -> why what it declares does not hold here
        self.share = settings.worker.capacity  # until it is known who else is there
        self._found: dict[bytes, bytes] = {}
        self._used: dict[str, LineSettings] = {}  # as last declared so that it could be used
        self._spread: set[str] = set()  # lines that the fleet shares out
        self._kept: dict[str, None] = {}  # those of them that this worker keeps, the longest kept first
        self._look_at = self._announce_at = 0.0
        self._follow_at: dict[str, float] = {}
        self._orphan_since: dict[str, float] = {}
        self._able = math.inf  # shared lines that this worker could keep
        self._wiped = False  # Redis has lost what this worker said of itself
        self._others: dict[str, str] = {}  # those of workers that are configured otherwise
        self._live: Iterable[str] = ()
        if settings.worker.fleet:
            self._found = self._declared() or {}

    # -- which lines -------------------------------------------------------------------------------------------------

    def take_over(self, settings: Settings) -> None:
        """Go by these from now on, as far as that takes no restart; raises ConfigurationError for no lines."""
        model = self.settings.model.model_copy(update={"bank_size": settings.model.bank_size})
        settings = settings.model_copy(update={"worker": self.settings.worker, "model": model})
        require_lines(settings)
        self.settings, self.changed = settings, True

    def wanted(self) -> list[LineConfig]:
        """The lines of the worker's own file, and those that are declared; where they differ, the file holds here."""
        own, (good, problems) = {config.name: config for config in line_configs(self.settings)}, declared(self._found)
        kept = {name: self._used[name] for name in problems if name in self._used}
        self._used = kept | good
        lines = tuple(self._used.values())
        found = {config.name: config for config in line_configs(self.settings.model_copy(update={"lines": lines}))}
        for name in sorted(set(own) & set(found)):
            if own[name] != found[name]:
                problems[name] = f"this worker's own configuration and {LINES_KEY} differ; its own holds here"
        self._spread = {name for name in found if own.get(name, found[name]) == found[name]}
        self._tell({f"line {printable(name)}": what for name, what in problems.items()})
        wanted = found | own
        self.alike.digests = {name: digest(config) for name, config in wanted.items()}
        return list(wanted.values())

    def _tell(self, problems: dict[str, str]) -> None:
        for which, problem in problems.items():
            if self.problems.get(which) != problem:
                log.error("what is declared for the fleet does not hold here", of=one_line(which, 80), problem=problem)
        for which in set(self.problems) - set(problems):
            log.info("what is declared for the fleet holds again, or is gone", of=one_line(which, 80))
        self.problems = problems
        self.metrics.fleet_problems.set(len(problems))

    def _declared(self) -> dict[bytes, bytes] | None:
        """What the hash holds; None where all stays as it is, which is told."""
        try:
            found: dict[bytes, bytes] = self.client.hgetall(LINES_KEY)
        except redis.ResponseError as error:  # a key of another type, a right that is missing
            self._tell({**self.problems, LINES_KEY: f"it cannot be read: {error}"})
            return None
        if self._found and not found:  # the last was removed, or all is lost
            self._announce_at = 0.0
            self.announce()
            if self._wiped:
                self._tell({**self.problems, LINES_KEY: WIPED})
                return None
        self._wiped = False
        return found

    def _read(self) -> None:
        found = self._declared()
        if found is not None and (found != self._found or LINES_KEY in self.problems):
            self._found, self.changed = found, True

    # -- who keeps which ---------------------------------------------------------------------------------------------

    def look(self, unloadable: Iterable[str]) -> bool:
        """Now and then, find out what is declared and who is there; whether other lines are wanted than before.

        Args:
            unloadable: lines whose version this worker cannot load.
        """
        self._able = len(self._spread.difference(unloadable)) if self._live else math.inf
        if self.settings.worker.fleet and time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_SECONDS
            self._read()
            self.announce()
        return self.changed

    def announce(self) -> None:
        """Now and then, say that this worker is there, and work out its share of the lines."""
        if not self.settings.worker.fleet or time.monotonic() < self._announce_at:
            return
        self._announce_at = time.monotonic() + LOOK_SECONDS
        try:
            now, workers = self._announced()
        except redis.ResponseError as error:  # all stays as it is
            self._tell({**self.problems, WORKERS_KEY: f"it cannot be used: {error}"})
            return
        self.changed |= WORKERS_KEY in self.problems
        live = {name: about for name, about in workers.items() if abs(now - about["at"]) < GONE_SECONDS}
        share = shares(len(self._found), {name: about["capacity"] for name, about in live.items()})[self.name]
        if (share, live.keys()) != (self.share, self._live):
            log.info("fleet", workers=sorted(live), lines=len(self._found), share=share)
        self.share, self._live = share, live.keys()
        self.metrics.fleet_workers.set(len(live))
        self._compare(live)
        for name in [name for name, about in workers.items() if abs(now - about["at"]) > FORGOTTEN_SECONDS]:
            self.client.hdel(WORKERS_KEY, name)

    def _announced(self) -> tuple[int, dict[str, dict[str, Any]]]:
        """Redis's time, and what all workers said of themselves, this one just now."""
        now: int = self.client.time()[0]
        capacity = min(self.settings.worker.capacity, self._able)
        about = {"at": now, "capacity": capacity, "settings": _digest(self.settings)}
        self._wiped |= bool(self._announce(keys=[WORKERS_KEY], args=[self.name, json.dumps(about)]) and self._live)
        return now, {**announced(self.client.hgetall(WORKERS_KEY)), self.name: about}

    def _compare(self, live: Mapping[str, Mapping[str, Any]]) -> None:
        own = live[self.name]["settings"]
        others = {name: str(about.get("settings")) for name, about in live.items() if about.get("settings") != own}
        for name in sorted(name for name in others if self._others.get(name) != others[name]):
            log.warning(OTHERWISE, worker=name)
        self._others = others

    def leave(self) -> None:
        """Let the others share out this worker's lines at once."""
        self._announce_at = math.inf
        if self.settings.worker.fleet:
            self.client.hdel(WORKERS_KEY, self.name)

    def keep(self, usable: Mapping[str, Keeper], guarded: Callable[[Keeper, Callable[[Keeper], None]], None]) -> None:
        """Have keepers try for their lease, those of shared lines up to the share; follow the others' versions."""
        self._count(usable)
        for name, keeper in usable.items():
            if self.alike.is_due(keeper):
                guarded(keeper, self.alike.look)
            if keeper.epoch:
                continue
            if name not in self._spread or len(self._kept) < self.share or self._orphaned(name):
                guarded(keeper, lambda k: k.acquire(self.holder, self.name))
                if keeper.epoch:
                    self._orphan_since.pop(name, None)
                    self._count(usable)
            else:
                guarded(keeper, self._follow)

    def _count(self, usable: Mapping[str, Keeper]) -> None:
        kept = {name for name in self._spread & usable.keys() if usable[name].epoch}
        self._kept = {name: None for name in [*self._kept, *sorted(kept - set(self._kept))] if name in kept}

    def _orphaned(self, name: str) -> bool:
        """Whether nobody keeps it since long: who should cannot, or counts otherwise. One more is let go for it."""
        since = self._orphan_since.get(name, math.inf)
        return time.monotonic() - since > ORPHAN_SECONDS and len(self._kept) < self.settings.worker.capacity

    def _follow(self, keeper: Keeper) -> None:
        name, now = keeper.line.name, time.monotonic()
        if now < self._follow_at.get(name, 0.0):
            return
        self._follow_at[name] = now + LOOK_SECONDS
        if not keeper.follow():
            self._follow_at[name] = now  # it is looked for in every turn until it has come
            return
        if keeper.streams.client.get(keeper.streams.lease):
            keeper.problem = ""
            self._orphan_since.pop(name, None)
        else:
            keeper.problem = "nobody keeps it: start a worker of the fleet, or raise worker.capacity"
            self._orphan_since.setdefault(name, now)

    def surplus(self, usable: Mapping[str, Keeper]) -> Iterator[str]:
        """The lines to let go while this worker keeps more than its share, the longest kept first, a few in a turn."""
        until = time.monotonic() + LET_GO_SECONDS
        self._count(usable)
        while len(self._kept) > self.share and time.monotonic() < until:
            name = next(iter(self._kept))
            log.info("a line is let go for the others", line=name, kept=len(self._kept), share=self.share)
            yield name
            self._count(usable)

    def forget(self, name: str) -> None:
        """The line is served no more."""
        self.alike.forget(name)
        self._follow_at.pop(name, None)
        self._orphan_since.pop(name, None)
