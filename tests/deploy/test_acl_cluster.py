"""What deploy/redis/users.acl grants, and what it says that a Cluster needs beside it, is enough there."""

import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.servers import recent_server
from tests.worker.faults.processes import IMAGES, done, play, running_worker, state, write_config
from tests.worker.faults.servers import PrivateCluster, private_cluster
from tests.worker.helpers import eventually
from worker.settings import RedisSettings
from worker.streams.client import connect
from worker.streams.rights import missing_rights

LINE = "press-3"
USERS = Path(__file__).parents[2] / "deploy" / "redis" / "users.acl"


def rules(user: str, secret: str) -> list[str]:
    """The user's line, with what the file's head says to add in a Cluster."""
    text = USERS.read_text()
    (line,) = re.findall(rf"^user {user} (.*)$", text, re.MULTILINE)
    (also,) = re.findall(r"^# each needs (\S+ \S+ \S+), too", text, re.MULTILINE)
    return [*re.sub(r"CHANGE-ME-\w+", secret, line).split(), *also.split()]


def add_user(cluster: PrivateCluster, user: str, folder: Path) -> RedisSettings:
    secret = folder / f"{user}.secret"
    secret.write_text(f"secret-of-{user}\n")
    for node in cluster.nodes:
        node.ask("ACL SETUSER", user, *rules(user, f"secret-of-{user}"))
    return RedisSettings.model_validate({"url": cluster.url, "username": user, "password_file": str(secret)})


def test_in_a_cluster_a_worker_is_refused_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.worker.faults.servers.redis_executable", recent_server)
    with private_cluster(tmp_path / "nodes") as cluster:
        to = cluster.join()
        cluster.wait()
        camera: Any = connect(RedisSettings.model_validate({"url": cluster.url}))
        worker_settings = add_user(cluster, "worker", tmp_path)
        monkeypatch.setenv("MHPC_REDIS__USERNAME", "worker")
        monkeypatch.setenv("MHPC_REDIS__PASSWORD_FILE", worker_settings.password_file)
        monkeypatch.setenv("MHPC_WORKER__FLEET", "true")
        images = f"mhpc:{{{LINE}}}:images"
        with running_worker(write_config(tmp_path, cluster.url, LINE, tmp_path)) as worker:
            play(camera, LINE, 0, 40)
            eventually(lambda: done(camera, LINE, 40))
            cluster.begin_to_move(images, to)
            while cluster.move_keys(images, to, 1):
                pass
            cluster.end_to_move(images, to)
            play(camera, LINE, 40, IMAGES)
            eventually(lambda: done(camera, LINE, IMAGES) and state(camera, LINE).get("phase") == "scoring")
            assert missing_rights(connect(worker_settings), LINE) == []
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(30) == 0
        for node in cluster.nodes:
            assert node.ask("ACL LOG") == []
