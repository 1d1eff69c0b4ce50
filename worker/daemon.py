"""Worker: startup -> run -> shutdown."""

import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import redis
import structlog

from worker.answering.turns import Answering
from worker.engine import Engine, pick_device
from worker.errors import AbsentError, ConfigurationError, FencedError, ModelError, StateError, StoreError
from worker.fleet import Fleet, require_lines
from worker.http import HttpServer, make_app
from worker.keeping import leases
from worker.keeping.keeper import Keeper
from worker.keeping.resync import Resync, lost_meanwhile
from worker.keeping.versions import learned_in
from worker.keeping.watching import Backlogs
from worker.learning import Learning
from worker.line import Line
from worker.lines import Lines, needing_a_restart
from worker.metrics import Metrics
from worker.refusals import REFUSED_SECONDS, STORE, VERSION, Refusals
from worker.runtime.crashes import CrashFile
from worker.runtime.environment import collect
from worker.runtime.notify import Notifier
from worker.runtime.pulse import Pulse
from worker.settings import LineConfig, Settings
from worker.storage.stores import open_store
from worker.streams.client import CONNECTION_ERRORS, connect
from worker.streams.line_streams import LineStreams
from worker.streams.review import review_caps

BLOCK_MS = 500  # so that SIGTERM is prompt
FINISH_SECONDS = 5.0  # for what is in hand when the worker stops
BACKOFF_SECONDS = (0.1, 5.0)

log = structlog.get_logger()


class Worker:
    """The process that answers and learns for all its lines, one turn of the loop after the other."""

    def __init__(self, settings: Settings, reread: Callable[[], Settings] | None = None) -> None:
        self.settings = settings
        self.reread = reread or (lambda: settings)  # what is configured now
        self.metrics = Metrics()
        self.manager = Notifier()
        self.crash_file = CrashFile(settings.snapshots.on_this_machine, settings.worker.name)
        self.pulse = Pulse(self.manager, self.crash_file)
        self.holder = f"{settings.worker.name}#{secrets.token_hex(4)}"
        self.stopping, self.reloading, self.redialled = (threading.Event() for _ in range(3))
        self.resync, self.refusals = Resync(), Refusals()
        self.connected = self._lost = False
        self._serves = False  # whether a line's version was ever there to answer by
        self._learning_waits = False  # the last turn read something to learn from: do not wait for answers to give
        self._show_backlogs = Backlogs(self.metrics)

    # -- startup -----------------------------------------------------------------------------------------------------

    def startup(self) -> None:
        """Connect, load the backbone, bind the port; each failure is a WorkerError with its exit code."""
        require_lines(self.settings)
        self.client = connect(self.settings.redis, redialled=self.redialled)
        self.fleet = Fleet(self.client, self.settings, self.holder, self.metrics)
        wanted, snapshots = self.fleet.wanted(), self.settings.snapshots
        self.engine = Engine(
            self.settings.model,
            pick_device(self.settings.worker.device),
            self.metrics,
            self._in_a_turn,
            learned_in((open_store(snapshots, config.name) for config in wanted), snapshots.timeout_seconds),
        )
        lines = self.lines = Lines(self._keeper, self.metrics, {"unique_ids": str(self.settings.streams.unique_ids)})
        self.keepers = lines.keepers
        for config in wanted:
            self.lines.open(config)
        self.answering = Answering(self.settings, self.engine, self.metrics, lines.streams, lines.weights)
        self.learning = Learning(self.answering, self.lines, self._in_a_turn)
        if self.crash_file.open():
            self.answering.intake.rewind(self.keepers, alone=True)
            for keeper in self.keepers.values():
                keeper.reading.suspicious = True
        app = make_app(self.metrics.registry, self.pulse.alive, self.ready, self.reached)
        self.http = HttpServer(self.settings.http, app)
        self.http.start()
        log.info(
            "started",
            worker=self.settings.worker.name,
            device=str(self.engine.device),
            backbone=self.settings.model.backbone,
            precision=str(self.engine.precision).removeprefix("torch."),
            lines=list(self.keepers),
            port=self.http.port,
        )
        self.manager.tell("READY=1", f"STATUS={self._served}")

    @property
    def _served(self) -> str:
        return f"serves {', '.join(self.keepers) or 'no line yet'} on {self.engine.device}"

    def _keeper(self, config: LineConfig) -> Keeper:
        model, device = self.settings.model, self.engine.device
        return Keeper(
            lambda: Line(config, model.pca_variance_ratio, device),
            LineStreams(self.client, config.name),
            open_store(self.settings.snapshots, config.name),
            self.settings.snapshots,
            self.engine.fingerprint,
            self.metrics,
            review_caps(self.settings),
            self.engine.precision,
        )

    # -- run ---------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Turn until asked to stop; Redis may go and come back. One that may be another is looked at in any case."""
        backoff = BACKOFF_SECONDS[0]
        while self.redialled.is_set() or not self.stopping.is_set():
            self.beat()
            try:
                while self.redialled.is_set() or not self.connected:
                    if self.connected:
                        log.warning("a connection to Redis had ended; looking whether the server is the same as before")
                    self._recover()
                    self.metrics.redis_reconnects.inc(self._lost)
                    if self._lost:
                        log.info("Redis is reached again")
                        self.manager.tell(f"STATUS={self._served}")
                    self.connected, self._lost, backoff = True, False, BACKOFF_SECONDS[0]
                if self.reloading.is_set():
                    with self.manager.reloading():
                        self._reload()
                    self.manager.tell(f"STATUS={self._served}")
                self._turn()
            except CONNECTION_ERRORS as error:
                if self.redialled.is_set():
                    continue  # it may be reached, and be another: _recover finds out
                if not self._lost:
                    log.warning("Redis is not reached; trying again for ever", error=str(error))
                    self.manager.tell("STATUS=Redis is not reached; trying again for ever")
                self.connected, self._lost = False, True
                self.lines.cut_off()
                self.stopping.wait(backoff)
                backoff = min(backoff * 2, BACKOFF_SECONDS[1])
            except redis.ResponseError as error:
                self.connected = False  # some line's group is gone: _recover finds out which, and makes it again
                log.warning("Redis refuses", error=str(error))
                self.stopping.wait(REFUSED_SECONDS)
        self.manager.tell("STOPPING=1")

    def beat(self) -> None:
        """A sign of life; none of a loop whose batch, or a picture of it, hangs on its thread."""
        self.pulse.beat(min(self.answering.judging.since, self.answering.decoding.since))

    def _in_a_turn(self) -> None:
        """After each batch: a turn may take longer than a lease."""
        self.beat()
        leases.amid_a_turn(self.fleet.announce, self.keepers.values(), self.stopping)

    def _recover(self) -> None:
        """Groups first, then own pending entries: a lost reply may have left some behind what is read next."""
        self.redialled.clear()
        with suppress(*CONNECTION_ERRORS):  # of the outage that is over
            self.answering.settle()
        for keeper in self.keepers.values():
            self._guarded(keeper, self._rewind)

    def _rewind(self, keeper: Keeper) -> None:
        keeper.streams.ensure_groups()
        self.answering.rewind([keeper.line.name])  # first: whoever keeps the line, what this one has read is its own
        if lost := lost_meanwhile(keeper):
            log.error(lost, line=keeper.line.name)
            keeper.lose("Redis lost writes; the line is loaded again as Redis has it")
        elif keeper.epoch and keeper.lease.lapsed:  # by a server that is gone another may have had it meanwhile
            log.warning("the lease lapsed meanwhile; the line is opened anew", line=keeper.line.name)
            keeper.lose("the lease lapsed")
        keeper.reading.rewind()

    def _reload(self) -> None:
        """Lines come, go and change as the configuration says now; what cannot be read leaves all as it is."""
        self.reloading.clear()  # first: a signal that comes from here on is for what is written by then
        try:
            settings = self.reread()
            self.fleet.take_over(settings)
        except ConfigurationError as error:
            log.error("the configuration is not taken over", error=str(error))
            return
        if keys := needing_a_restart(self.settings, settings):
            log.warning("changed, and taken over by a restart only", keys=keys)
        self._change_lines()

    def _change_lines(self) -> None:
        gone, come = self.lines.changes(self.fleet.wanted())
        self.answering.finish(self.client, self._usable(), FINISH_SECONDS)
        self.fleet.changed = False  # until here it is tried again; below nothing fails but what _recover does again
        self._refuse_all()
        reached = True
        for name in gone:
            if reached:
                self._in_a_turn()  # each may want a snapshot, on a slow disk
            reached = leases.let_go(self.keepers[name], reached)
            self.answering.forget(name)
            self.learning.forget(name)
            self.lines.close(name)
            self.refusals.forget(name)
            self.fleet.forget(name)
        opened = [self.lines.open(config) for config in come]
        for keeper in opened:
            self._guarded(keeper, self._rewind)
        collect()  # keepers that are gone are few objects, and much memory: they would stay for long
        log.info("configuration", closed=gone, opened=[config.name for config in come])

    def _turn(self) -> None:
        """Answer what is there, then learn a little: learning never keeps an answer waiting for long."""
        if self.fleet.look(self.refusals.unloadable):
            self._change_lines()
            self.manager.tell(f"STATUS={self._served}")
        for name in self.refusals.tried_again():
            self._guarded(self.keepers[name], self._rewind)
        for name in self.fleet.surplus(self._usable()):
            leases.let_go(self.keepers[name])
        self.fleet.keep(self._usable(), self._guarded)
        for keeper in self.keepers.values():
            if keeper.stopped and keeper.line.name not in self.refusals:
                self._guarded(keeper, lambda k: self.resync(k, self.holder))
        loaded = {name: keeper for name, keeper in self._usable().items() if keeper.loaded}
        self._serves |= bool(loaded)
        self.answering.turn(self.client, loaded, None if self._learning_waits else BLOCK_MS)
        self._refuse_all()
        self._learning_waits = self.learning.turn(self.client, self._usable(), self._guarded)
        self._show_backlogs(self.client, self.lines.streams.values())
        self.refusals.went_on(self._usable())

    def _refuse_all(self) -> None:
        for name, error in self.answering.refused.items():
            self.refusals.add(name, error)

    def _guarded(self, keeper: Keeper, step: Callable[[Keeper], None]) -> None:
        """What goes wrong with a line stops that line alone; a lost connection concerns all, and is passed on."""
        self.beat()  # to load a version takes its time, and they may be many
        try:
            step(keeper)
        except FencedError as error:
            log.warning("line lost to another keeper", line=keeper.line.name, error=str(error))
            keeper.lose(str(error))
            self.answering.cache.drop(keeper.line.name)
        except AbsentError as error:  # its keeper was faster: a newer version is committed
            log.info("a version went while it was loaded; the next one is", line=keeper.line.name, version=str(error))
        except (redis.ResponseError, StateError) as error:
            self.refusals.add(keeper.line.name, str(error))
        except StoreError as error:
            self.refusals.withhold(keeper.streams, str(error), STORE)
        except ModelError as error:
            self.refusals.withhold(keeper.streams, str(error), VERSION)  # others may have it
            if not (self._serves or self.settings.worker.fleet) and all(map(self.refusals.__contains__, self.keepers)):
                raise  # at the start, and there is no line that it could serve

    def _usable(self) -> dict[str, Keeper]:
        unsure = self.redialled.is_set()  # until _recover has looked: the server may be another one
        return {name: k for name, k in self.keepers.items() if not (unsure or k.stopped or name in self.refusals)}

    # -- probes ------------------------------------------------------------------------------------------------------

    def reached(self) -> str:
        return "" if self.connected else "Redis is not reached"

    def ready(self) -> str:
        if not self.connected:
            return self.reached()
        told = {**self.lines.problems, **self.refusals.problems}
        of_lines = {f"line {name}": problem for name, problem in told.items()}
        return "; ".join(f"{which}: {problem}" for which, problem in {**of_lines, **self.fleet.problems}.items())

    # -- shutdown ----------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Answer what is in hand, make durable what was learned, and let the lines go."""
        reached = not self._lost  # else it was waited for: a stop does that once
        try:  # what fails comes again
            with suppress(redis.ResponseError):
                if reached:
                    self.answering.finish(self.client, self._usable(), FINISH_SECONDS)
                    self.fleet.leave()
        except redis.RedisError:
            reached = False
        for keeper in self.keepers.values():
            self.pulse.beat(time.monotonic())
            reached = leases.let_go(keeper, reached)

    def shutdown(self) -> None:
        """End the threads, and stop answering HTTP."""
        self.http.stop()
        self.answering.close()
        self.crash_file.close()
        log.info("stopped")
