"""snapshots.directory: a folder or an address, and what the commands make of it."""

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
import redis
import torch

from tests.worker.bucket import KEYS, new_bucket
from tests.worker.calling import Call
from tests.worker.faulty import Faults, flip
from worker.configuration import load_settings
from worker.errors import ConfigurationError
from worker.settings import SnapshotSettings
from worker.snapshots import SnapshotStore, packed, stem_of
from worker.storage.object_store import ObjectStore
from worker.storage.stores import open_store
from worker.streams.line_streams import LineStreams

STEMS = [stem_of(1, seq) for seq in range(1, 4)]


def directory(given: object) -> object:
    return load_settings(None, {"snapshots": {"directory": given}}, {}).snapshots.directory


def test_a_folder_is_a_folder_and_an_address_is_an_object_store() -> None:
    for given in ("snapshots", "/var/lib/mhpc", "file:///var/lib/mhpc", Path("snapshots")):
        store = open_store(SnapshotSettings(directory=given), "press-3")
        assert isinstance(store, SnapshotStore)
        assert not store.remote
    assert directory("file:///var/lib/mhpc") == Path("/var/lib/mhpc")  # fsynced there, and renamed
    assert directory("s3://plant/models/") == "s3://plant/models"
    for given in ("s3://plant/models", "gs://plant", "abfs://models@plant.dfs.core.windows.net/press", "memory://x"):
        settings = SnapshotSettings(directory=given)
        assert settings.on_this_machine == settings.cache
        store = open_store(settings, "press-3")
        assert isinstance(store, ObjectStore)
        assert store.place == f"{given}/press-3"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("s3://key:sesame@plant/models", "has a password in it"),
        ("s3://plant/models?secret=sesame", "without options"),
        ("simplecache::s3://plant/models", "without options"),
        ("s3://", "expected a folder, or SCHEME://BUCKET/PREFIX"),
        ("file://models", "expected file:///FOLDER"),
        (3, "expected a folder, or the address of an object store"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_and_no_password_quoted(given: object, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        directory(given)
    assert said in str(caught.value)
    assert "snapshots.directory: " in str(caught.value)
    assert "sesame" not in str(caught.value)


@pytest.fixture
def store(request: pytest.FixtureRequest, line: str, tmp_path: Path, s3: str) -> ObjectStore:
    """Three versions in an S3."""
    store = ObjectStore(new_bucket(), line, tmp_path / "writer")
    for seq, stem in enumerate(STEMS):
        metadata = {"phase": "learning", "images_learned": 8 * seq, "applied_through": f"{seq}-0"}
        store.put(stem, packed({"mean": torch.full((3,), float(seq))}, metadata))
    return store


def file_for(config: Any, tmp_path: Path, store: ObjectStore) -> Path:
    path: Path = config()
    url = store.place.rpartition("/")[0]
    told = f"directory = '{url}'\ncache = '{tmp_path / 'reader'}'\ntimeout_seconds = 20"
    path.write_text(path.read_text().replace(f"directory = '{tmp_path / 'snapshots'}'", told))
    return path


def test_the_commands_work_on_an_object_store_as_on_a_folder(
    call: Call, config: Any, client: redis.Redis, line: str, store: ObjectStore, tmp_path: Path
) -> None:
    file = file_for(config, tmp_path, store)
    client.hset(LineStreams(client, line).state_key, "model", STEMS[2])
    ended = call("snapshots", "pin", STEMS[0], "--config", file)
    assert (ended.code, ended.err) == (0, "")
    rows = [json.loads(text) for text in call("snapshots", "list", "--config", file, "--json").out.splitlines()]
    assert [row["version"] for row in rows] == STEMS
    assert [row["version"] for row in rows if row["pinned"]] == STEMS[:1]
    assert [row["version"] for row in rows if row["committed"]] == STEMS[2:]
    assert [row["images_learned"] for row in rows] == [0, 8, 16]
    assert all(row["bytes"] > 100 for row in rows)
    ended = call("snapshots", "verify", "--config", file)
    assert (ended.code, ended.out.splitlines()[-1]) == (0, f"3 versions in {store.place}, each is whole")
    flip(store.place, f"{STEMS[1]}-")
    ended = call("snapshots", "verify", "--config", file)
    assert ended.code == 1
    assert f"BAD {STEMS[1]}" in ended.out
    assert f"restore a copy into {store.place}, or go on from {STEMS[2]}" in ended.err
    store.prune(2, STEMS[2])
    assert store.stems() == STEMS  # the first is pinned
    assert call("snapshots", "unpin", STEMS[0], "--config", file).code == 0
    shown = call("config", "show", "--config", file).out
    assert store.place.rpartition("/")[0] in shown
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in shown


def test_check_writes_reads_and_removes_and_tells_what_is_wrong_in_one_line(
    call: Call, config: Any, store: ObjectStore, tmp_path: Path, s3: str
) -> None:
    file = file_for(config, tmp_path, store)
    ended = call("check", "--config", file)
    url = store.place.rpartition("/")[0]
    assert f"ok   snapshots  {url} can be written and read, and overwrites nothing" in ended.out
    assert f"ok   disk       {url} does not say how much room it has" in ended.out
    file.write_text(file.read_text().replace(url, "s3://nowhere-at-all/models"))
    ended = call("check", "--config", file)
    assert ended.code == 1
    (told,) = (text for text in ended.out.splitlines() if text.startswith("FAIL snapshots"))
    assert "bucket does not exist" in told
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in ended.out + ended.err


@pytest.mark.parametrize("command", [("verify",), ("pin", STEMS[0]), ("unpin", STEMS[0])])
def test_a_store_that_does_not_answer_is_waited_for_so_long_and_no_longer(
    call: Call, config: Any, faults: Faults, tmp_path: Path, command: tuple[str, ...]
) -> None:
    path: Path = config()
    told = f"directory = 'faulty://{uuid.uuid4().hex}'\ntimeout_seconds = 0.05"
    path.write_text(path.read_text().replace(f"directory = '{tmp_path / 'snapshots'}'", told))
    faults.open.clear()
    ended = call("snapshots", *command, "--config", path)
    assert ended.code == 1
    assert "has not answered for 0.05 s; is it slow, or away?" in ended.err


def test_a_worker_whose_package_is_missing_says_what_to_install(
    call: Call, config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)  # as where it is not installed
    path: Path = config()
    path.write_text(path.read_text().replace(f"directory = '{tmp_path / 'snapshots'}'", "directory = 'gs://plant/x'"))
    ended = call("run", "--config", path)
    assert ended.code == 2
    assert "snapshots.directory gs://plant/x: gs:// needs a package: pip install gcsfs" in ended.err
