"""Lines that come and go while the worker runs."""

import gc
import threading
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import redis

from tests.worker.helpers import eventually, item, message
from tests.worker.turning import get, running
from worker.daemon import Worker
from worker.errors import ConfigurationError
from worker.lines import Lines, needing_a_restart
from worker.settings import Settings
from worker.streams.line_streams import LineStreams


class Reloads(Worker):
    """Says when a configuration was taken over, or refused."""

    def __init__(self, settings: Settings, reread: Callable[[], Settings]) -> None:
        super().__init__(settings, reread)
        self.reloaded = threading.Semaphore(0)

    def _reload(self) -> None:
        super()._reload()
        self.reloaded.release()


class Configured:
    """A running worker, and what its file says."""

    def __init__(self, settings: Settings) -> None:
        self.now: Settings | ConfigurationError = settings
        self.worker = Reloads(settings, self._reread)
        self.worker.startup()
        self._thread = threading.Thread(target=self.worker.run)
        self._thread.start()

    def _reread(self) -> Settings:
        if isinstance(self.now, ConfigurationError):
            raise self.now
        return self.now

    def reload(self, now: Settings | ConfigurationError) -> None:
        self.now = now
        self.worker.reloading.set()
        assert self.worker.reloaded.acquire(timeout=60)

    def stop(self) -> None:
        self.worker.stopping.set()
        self._thread.join(60)
        self.worker.drain()
        self.worker.shutdown()


@pytest.fixture
def configured(settings: Any, line: str) -> Any:
    running = Configured(settings(f"{line}-a", f"{line}-b"))
    yield running
    running.stop()


def send(client: redis.Redis, line: str, *identities: str) -> None:
    client.xadd(f"mhpc:{{{line}}}:images", {"batch": message(*map(item, identities))})


def answered(client: redis.Redis, line: str) -> int:
    return int(client.xlen(f"mhpc:{{{line}}}:scores"))


def test_a_line_that_comes_is_answered_without_a_restart(
    configured: Configured, settings: Any, client: redis.Redis, line: str
) -> None:
    send(client, f"{line}-c", "1", "2")
    configured.reload(settings(f"{line}-a", f"{line}-b", f"{line}-c"))
    assert eventually(lambda: answered(client, f"{line}-c")) == 2


def test_a_line_that_goes_is_let_go_at_once_with_what_it_learned(
    configured: Configured, settings: Any, client: redis.Redis, line: str
) -> None:
    gone = f"{line}-b"
    send(client, gone, *map(str, range(8)))
    eventually(lambda: configured.worker.keepers[gone].line.learner.images_seen_ == 8)
    configured.reload(settings(f"{line}-a"))
    eventually(lambda: gone not in configured.worker.keepers)
    streams = LineStreams(client, gone)
    assert client.pttl(streams.lease) <= 1  # milliseconds: it was let go, and does not only end by itself
    assert eventually(lambda: streams.acquire("another#1", 0)[0]) == 2
    assert LineStreams(client, gone).state()["model"]
    assert client.xpending(f"mhpc:{{{gone}}}:images", "mhpc-learn")["pending"] == 0
    assert gone not in get(configured.worker, "/metrics")[1]
    send(client, f"{line}-a", "1")
    assert eventually(lambda: answered(client, f"{line}-a")) == 1


def test_a_line_that_is_configured_otherwise_goes_on_from_what_it_learned(
    configured: Configured, settings: Any, client: redis.Redis, line: str
) -> None:
    name = f"{line}-a"
    send(client, name, *map(str, range(8)))
    eventually(lambda: configured.worker.keepers[name].line.learner.images_seen_ == 8)
    now = settings(name, f"{line}-b")
    configured.reload(now.model_copy(update={"learning": now.learning.model_copy(update={"images": 12})}))

    def reopened() -> bool:  # the keeper before is there for a moment more
        keeper = configured.worker.keepers.get(name)
        return keeper is not None and keeper.line.config.learning.images == 12 and bool(keeper.epoch)

    eventually(reopened)
    assert configured.worker.keepers[name].line.learner.images_seen_ == 8


def test_a_change_that_is_told_while_another_is_carried_out_is_taken_over_too(
    configured: Configured, settings: Any, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, finish = configured.worker, configured.worker.answering.finish

    def meanwhile(*args: Any) -> None:
        monkeypatch.undo()
        configured.now = settings(f"{line}-a", f"{line}-c")
        worker.reloading.set()
        finish(*args)

    monkeypatch.setattr(worker.answering, "finish", meanwhile)
    configured.reload(settings(f"{line}-a"))
    eventually(lambda: sorted(worker.keepers) == [f"{line}-a", f"{line}-c"])


def test_the_memory_of_a_line_that_goes_is_free_at_once(configured: Configured, settings: Any, line: str) -> None:
    gone = weakref.ref(configured.worker.keepers[f"{line}-b"])
    gc.freeze()  # as a process does that serves
    configured.reload(settings(f"{line}-a"))
    eventually(lambda: gone() is None)
    gc.unfreeze()


def test_a_configuration_that_cannot_be_read_leaves_all_as_it_is(
    configured: Configured, client: redis.Redis, line: str
) -> None:
    configured.reload(ConfigurationError("line 3: not TOML"))
    send(client, f"{line}-a", "1")
    assert eventually(lambda: answered(client, f"{line}-a")) == 1
    assert sorted(configured.worker.keepers) == [f"{line}-a", f"{line}-b"]


def test_what_is_owed_a_snapshot_is_told_only_as_long_as_the_lease_lasts(
    configured: Configured, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, worker = f"{line}-a", configured.worker
    keeper = worker.keepers[name]
    eventually(lambda: keeper.epoch)
    monkeypatch.setattr(type(keeper.schedule), "owed_seconds", 7.0)
    owed = ("mhpc_snapshot_owed_seconds", {"line": name})
    assert worker.metrics.registry.get_sample_value(*owed) == 7.0
    monkeypatch.setattr(type(keeper.lease), "held", False)  # as when Redis is gone for so long
    assert worker.metrics.registry.get_sample_value(*owed) == 0.0


def test_of_two_workers_the_keeper_alone_is_shown_to_keep_a_line(
    configured: Configured, settings: Any, line: str
) -> None:
    name = f"{line}-a"

    def keeps(worker: Worker) -> float | None:
        return worker.metrics.registry.get_sample_value("mhpc_line_keeper", {"line": name})

    eventually(lambda: keeps(configured.worker))
    with running(settings(name, worker={"name": "station-2"})) as other:
        assert eventually(lambda: get(other, "/readyz") == (200, "ok\n"))  # to answer is enough
        assert (keeps(configured.worker), keeps(other)) == (1, 0)
        keeper = configured.worker.keepers[name]
        keeper.lease._lapses_at = 0.0  # as when Redis, or the work loop, is gone for so long
        assert keeps(configured.worker) == 0


def test_what_only_a_restart_takes_over_is_named(settings: Any, line: str) -> None:
    old = settings(line)
    model = old.model.model_copy(update={"layers": ("layer2",), "bank_size": 7})
    new = settings(line, "more").model_copy(update={"model": model})
    assert needing_a_restart(old, new) == ["model.layers"]
    assert needing_a_restart(old, settings("other")) == []


def test_a_token_that_comes_or_goes_is_named(settings: Any, line: str) -> None:
    without = settings(line)
    with_one = settings(line, console={"tokens": {"anna": "a-token-of-24-characters"}})
    assert needing_a_restart(without, with_one) == needing_a_restart(with_one, without) == ["console.tokens.anna"]


def test_what_only_a_person_can_mend_is_told_by_who_keeps_the_line() -> None:
    def keeper(epoch: int, problem: str, found: str) -> SimpleNamespace:
        return SimpleNamespace(epoch=epoch, problem=problem, upkeep=SimpleNamespace(problem=found))

    keepers = {
        "well": keeper(1, "", ""),
        "used-up": keeper(1, "", "its ids are used up"),
        "stopped": keeper(0, "its stream went back", "its ids are used up"),
        "kept-elsewhere": keeper(0, "", "its ids are used up"),
    }
    problems = Lines.problems.fget(cast(Any, SimpleNamespace(keepers=keepers)))  # type: ignore[attr-defined]  # a property
    assert problems == {"used-up": "its ids are used up", "stopped": "its stream went back"}
