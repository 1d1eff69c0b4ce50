"""A keeper and a scorer as deploy/kubernetes configures them, but for addresses, folders and sizes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.deploy.composing import redis_of, with_secrets
from tests.deploy.test_kubernetes import BY_NAME, FOLDER
from tests.worker.helpers import eventually
from tests.worker.playing import answered, in_phase, send
from tests.worker.turning import get, running
from worker.configuration import load_settings
from worker.line import SCORING
from worker.settings import LINES_KEY, Settings

LINE = "press-3"
SIZES = {
    "MHPC_MODEL__INPUT_SHAPE": "[64, 64]", "MHPC_MODEL__BANK_SIZE": "200", "MHPC_LEARNING__IMAGES": "16",
    "MHPC_LEARNING__CONVERGE": "false", "MHPC_CALIBRATION__IMAGES": "20", "MHPC_SNAPSHOTS__EVERY_IMAGES": "8",
    "MHPC_CALIBRATION__FALSE_POSITIVE_RATE": "0.05", "MHPC_WORKER__DEVICE": "cpu", "MHPC_HTTP__PORT": "0",
}  # fmt: skip

SettingsOf = Callable[[str, str, str], Settings]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """deploy/ with secrets, and the port of a Redis that has its users."""
    deploy, data = with_secrets(tmp_path), tmp_path / "data"
    data.mkdir()
    with redis_of(deploy, data) as (port, process):
        eventually(lambda: process.poll() is None and (data / "appendonlydir").exists())
        yield deploy, port


@pytest.fixture
def settings_of(tmp_path: Path, server: tuple[Path, int], monkeypatch: pytest.MonkeyPatch) -> SettingsOf:
    """The settings of a pod of that name; kind and name of what made it."""
    deploy, port = server
    here = {
        "MHPC_REDIS__URL": f"redis://127.0.0.1:{port}/0",
        "MHPC_REDIS__PASSWORD_FILE": str(deploy / "secrets" / "redis_worker"),
        "MHPC_SNAPSHOTS__DIRECTORY": str(tmp_path / "snapshots"),
    }

    def settings_of(kind: str, name: str, pod: str) -> Settings:
        (container,) = BY_NAME[kind, name]["spec"]["template"]["spec"]["containers"]
        with monkeypatch.context() as environment:
            for entry in container["env"]:
                environment.setenv(entry["name"], entry.get("value", pod))
            for key, value in {**SIZES, **here}.items():
                environment.setenv(key, value)
            return load_settings(FOLDER / "worker.toml")

    return settings_of


def test_a_declared_line_is_kept_by_the_keeper_and_answered_by_a_scorer_when_it_is_gone(
    server: tuple[Path, int], settings_of: SettingsOf
) -> None:
    deploy, port = server

    def client(user: str) -> Any:
        password = (deploy / "secrets" / f"redis_{user}").read_text().split()[-1]
        return redis.Redis(port=port, username=user, password=password, protocol=2, driver_info=None)

    eventually(lambda: client("operator").ping())
    client("operator").hset(LINES_KEY, LINE, "{}")
    with running(settings_of("Deployment", "mhpc-scorers", "mhpc-scorers-7d4b9-x2x")) as scorer:
        with running(settings_of("StatefulSet", "mhpc-keepers", "mhpc-keepers-0")) as keeper:
            eventually(lambda: keeper.keepers[LINE].epoch)
            send(client("producer"), LINE, 1, 40)
            eventually(lambda: in_phase(client("reader"), LINE, SCORING))
            assert scorer.keepers[LINE].epoch == 0
            eventually(lambda: scorer.keepers[LINE].line.serving.scorer)  # it looks for a version between batches
            for worker in (keeper, scorer):
                eventually(lambda worker=worker: get(worker, "/readyz")[0] == 200)  # type: ignore[misc]  # binds the loop's
                eventually(lambda worker=worker: "mhpc_stream_lag_entries{" in get(worker, "/metrics")[1])  # type: ignore[misc]  # mypy sees no default's type
        send(client("producer"), LINE, 41, 48)
        told = answered(client("reader"), LINE, 48)
        assert sorted(int(result["id"]) for result in told) == list(range(1, 49))
        assert [result for result in told if int(result["id"]) > 40 and result["score"] is None] == []
        assert scorer.keepers[LINE].epoch == 0
