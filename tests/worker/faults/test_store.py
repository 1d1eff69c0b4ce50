"""Workers whose versions lie in an S3: one learns, another loads; one is killed on the way; a bucket that goes away."""

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import pytest
import redis

from tests.worker.bucket import KEYS, new_bucket
from tests.worker.faults.failing import VARIABLE
from tests.worker.faults.processes import (
    IMAGES,
    assert_each_answered_once,
    assert_learned_alike,
    done,
    finish,
    play,
    running_worker,
    state,
    write_config,
)
from tests.worker.faulty import objects
from tests.worker.helpers import eventually
from worker.snapshots import Snapshot
from worker.storage.object_store import ObjectStore


def configured(folder: Path, redis_url: str, line: str, url: str, name: str = "") -> Path:
    """A worker of a machine of its own: it has that store, and a cache."""
    path = write_config(folder, redis_url, line, folder, name)
    machine = f'directory = "{url}"\ncache = "{folder / f"cache-{name}"}"\ntimeout_seconds = 20'
    path.write_text(path.read_text().replace(f'directory = "{folder}"', machine))
    return path


def log_of(config: Path) -> str:
    return config.with_suffix(".log").read_text()


def test_killed_between_upload_and_commit_it_ends_as_an_unbroken_run_does(
    redis_url: str,
    client: redis.Redis,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unbroken_run: Snapshot,
    s3: str,
) -> None:
    url = new_bucket()
    config = configured(tmp_path, redis_url, line, url)
    store, left = ObjectStore(url, line, tmp_path / "another-machine"), set[str]()
    for number, place in enumerate(("upload", "manifest", "commit", "commit_done")):
        play(client, line, 20 * number, 20 * number + 20)
        time = 2 if place.startswith("commit") else 1  # a start passes the commit by itself once
        monkeypatch.setenv(VARIABLE, f"{place}:kill:{time}")
        with running_worker(config) as worker:
            assert worker.wait(60) == -signal.SIGKILL, log_of(config)
        committed, whole = state(client, line)["model"], set(store.stems())
        left |= {stem for stem in whole if stem > committed}
        assert (committed in whole) == (place == "commit_done")
    assert len(left) == 1  # of the commit that never was; an object without a manifest is no version
    monkeypatch.delenv(VARIABLE)
    play(client, line, 80, IMAGES)
    with running_worker(config) as worker:
        finish(client, line, worker)
    assert_each_answered_once(client, line)
    assert_learned_alike(store.load(state(client, line)["model"]), unbroken_run)
    assert state(client, line)["model"] == store.stems()[-1]
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in log_of(config)


def test_what_one_worker_learned_in_s3_another_answers_by_and_keeps_when_it_is_gone(
    redis_url: str, client: redis.Redis, line: str, tmp_path: Path, s3: str
) -> None:
    url = new_bucket()
    first, second = (configured(tmp_path, redis_url, line, url, name) for name in ("station-1", "station-2"))
    with running_worker(first) as keeper:
        eventually(lambda: client.exists(f"mhpc:{{{line}}}:lease"))
        with running_worker(second) as other:
            play(client, line, 0, 84)
            eventually(lambda: done(client, line, 84) and state(client, line).get("phase") == "scoring")
            keeper.send_signal(signal.SIGTERM)
            assert keeper.wait(30) == 0
            eventually(lambda: state(client, line).get("epoch") == "2")
            play(client, line, 84, IMAGES)
            finish(client, line, other)
    assert_each_answered_once(client, line)
    assert len([name for name in objects(url) if name.endswith(".json")]) <= 4  # pruned to snapshots.keep


def removed(fs: Any, bucket: str) -> bool:
    """Whether the bucket is gone now; what the worker puts there between the listing and the end keeps it."""
    fs.invalidate_cache()
    with suppress(OSError):
        fs.rm(bucket, recursive=True)
    return not fs.exists(bucket)


def test_a_bucket_that_goes_away_stops_no_answer_and_acknowledges_nothing_until_it_is_back(
    redis_url: str, client: redis.Redis, line: str, tmp_path: Path, unbroken_run: Snapshot, s3: str
) -> None:
    url = new_bucket()
    bucket = url.split("/")[2]
    config = configured(tmp_path, redis_url, line, url)
    fs = fsspec.filesystem("s3")
    with running_worker(config) as worker:
        play(client, line, 0, 20)
        eventually(lambda: done(client, line, 20) and state(client, line).get("model"))
        eventually(lambda: removed(fs, bucket))
        before = state(client, line)["model"]
        play(client, line, 20, 60)
        eventually(lambda: done(client, line, 60) and "is not written" in state(client, line)["problem"])
        held = state(client, line)["model"]
        assert held >= before
        fs.mkdir(bucket)
        play(client, line, 60, IMAGES)
        finish(client, line, worker)
    assert_each_answered_once(client, line)
    final = state(client, line)
    assert (final["problem"], final["model"] > held) == ("", True)
    store = ObjectStore(url, line, tmp_path / "another-machine")
    assert_learned_alike(store.load(final["model"]), unbroken_run)
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in log_of(config)
