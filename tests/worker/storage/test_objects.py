"""An S3, and what fsspec has beside it, as all that speak to a store see them."""

import uuid
from pathlib import Path

import pytest

from tests.worker.bucket import new_bucket
from tests.worker.faulty import Faults
from worker.errors import ConfigurationError, StoreError
from worker.storage.objects import Objects, file_system, probe


@pytest.fixture(params=["s3", "memory", "faulty"])
def url(request: pytest.FixtureRequest, faults: Faults) -> str:
    if request.param == "s3":
        request.getfixturevalue("s3")
        return new_bucket()
    return f"{request.param}://{uuid.uuid4().hex}/models"


def test_an_object_is_created_once_listed_read_and_removed(url: str) -> None:
    objects = Objects(url, "press-3")
    assert objects.names() == set()
    assert objects.read("a") is None
    objects.create("a", b"one")
    objects.mark("b.pin")
    assert objects.names() == {"a", "b.pin"}
    assert (objects.read("a"), objects.read("b.pin")) == (b"one", b"")
    assert Objects(url, "press-4").names() == set()
    objects.remove("a")
    objects.remove("a")
    assert objects.names() == {"b.pin"}


def test_what_is_there_is_never_overwritten_and_a_repeat_after_a_lost_reply_is_no_error(url: str) -> None:
    objects = Objects(url, "press-3")
    objects.create("a", b"one")
    objects.create("a", b"one")
    with pytest.raises(StoreError, match=r"cannot be written: \w+.*; mend it, or this worker's rights there"):
        objects.create("a", b"two")
    assert objects.read("a") == b"one"


def test_a_store_is_tried_and_left_as_it_was(url: str) -> None:
    probe(url)
    assert Objects(url, ".mhpc-check").names() == set()


def test_a_bucket_that_is_not_there_refuses_what_is_written(s3: str) -> None:
    with pytest.raises(StoreError, match="bucket does not exist"):
        Objects("s3://nowhere-at-all/models", "press-3").create("a", b"one")


def test_a_store_that_overwrites_is_refused(faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"faulty://{uuid.uuid4().hex}"
    fs, _ = file_system(url)
    write = type(fs).pipe_file
    monkeypatch.setattr(type(fs), "pipe_file", lambda fs, path, value, mode="": write(fs, path, value))
    with pytest.raises(StoreError, match="overwrites an object that is to be created"):
        probe(url)


@pytest.mark.parametrize(("name", "said"), [("full", "No space left in the bucket"), ("away", "nobody answers")])
def test_a_store_that_is_full_or_away_is_told_in_one_line(faults: Faults, name: str, said: str) -> None:
    setattr(faults, name, True)
    with pytest.raises(StoreError, match=said) as caught:
        Objects("faulty://plant", "press-3").create("a", b"one")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("gs://plant/models", "gs:// needs a package: pip install gcsfs"),
        ("abfs://plant/models", "abfs:// needs a package: pip install adlfs"),
        ("nonsense://plant", "expected an address that fsspec knows, such as s3://BUCKET/PREFIX"),
    ],
)
def test_a_package_that_is_missing_is_named_with_what_to_install(
    url: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("gcsfs", "adlfs"):  # as where they are not installed
        monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ConfigurationError) as caught:
        file_system(url)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"snapshots.directory {url}")


def test_a_key_that_s3_wants_stands_in_no_error(s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        Objects("s3://nowhere-at-all/models", "press-3").create("a", b"one")
    assert "a-key-that-no-log-may-show" not in str(caught.value)
