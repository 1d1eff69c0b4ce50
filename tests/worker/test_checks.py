import io
import json
import socket
from pathlib import Path
from typing import Any

import pytest
import redis
import torch
from rich.console import Console

from tests.conftest import PrivateRedis
from tests.worker.faulty import Faults
from tests.worker.helpers import small_settings
from worker.checks import run_checks
from worker.errors import ConfigurationError, DeviceError, ModelError, RedisUnreachableError, SnapshotError, WorkerError
from worker.http import HttpServer, make_app
from worker.metrics import Metrics
from worker.settings import LINES_KEY, HttpSettings, Settings

ITEMS = ("lines", "redis", "streams", "snapshots", "http", "device", "model", "versions", "disk")
UNREACHABLE = {"url": "redis://user:hunter2@127.0.0.1:1/0"}


def checked(settings: Settings) -> tuple[list[str], WorkerError | None]:
    """The printed checklist, and what ended it."""
    console = Console(file=io.StringIO(), width=80)
    try:
        run_checks(settings, console)
    except WorkerError as error:
        failure: WorkerError | None = error
    else:
        failure = None
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines(), failure


@pytest.fixture
def sections(redis_url: str, tmp_path: Path) -> dict[str, Any]:
    return {"redis": {"url": redis_url}, "snapshots": {"directory": tmp_path / "snapshots"}}


def test_a_worker_that_can_run_is_told_so_item_by_item(sections: dict[str, Any], tmp_path: Path) -> None:
    lines, failure = checked(small_settings("press-3", "press-4", **sections))
    assert failure is None
    assert [text.split()[:2] for text in lines] == [["ok", name] for name in ITEMS]
    whole = "\n".join(lines)
    for part in ("press-3 (learns 16, calibrates 20, bank 200)", str(tmp_path / "snapshots"), "MB free", "cpu"):
        assert part in whole
    assert "resnet18 (random:0), 8 x 8 patches" in whole
    assert list((tmp_path / "snapshots").iterdir()) == []


def test_of_a_fleet_the_declared_lines_are_looked_at(private_redis: PrivateRedis, tmp_path: Path) -> None:
    server = redis.Redis(port=private_redis.port, protocol=2)
    about = {"redis": {"url": private_redis.url}, "snapshots": {"directory": tmp_path}, "worker": {"fleet": True}}
    lines, failure = checked(small_settings(**about))
    assert failure is None
    assert "no line is declared for the fleet" in "\n".join(lines)
    server.hset(LINES_KEY, mapping={"press-3": "{}", "press-4": '{"bank_size": 0}'})
    lines, failure = checked(small_settings(**about))
    assert "line press-4: declared in mhpc:lines: bank_size: " in str(failure)
    whole = "\n".join(lines)
    assert "declared for the fleet: press-3" in whole
    assert "press-3 (new: a worker makes its stream)" in whole


@pytest.mark.parametrize(
    ("changes", "kind", "failing", "parts"),
    [
        ({"redis": UNREACHABLE}, RedisUnreachableError, "redis", ["127.0.0.1:1", "redis.url"]),
        ({"worker": {"device": "cuda:99"}}, DeviceError, "device", ["worker.device", "cuda:99"]),
        ({"model": {"weights": "absent.safetensors"}}, ModelError, "model", ["absent.safetensors", "safetensors"]),
        ({"model": {"layers": ("layer9",)}}, ModelError, "model", ["layer9", "layer3"]),
        (
            {"snapshots": {"directory": Path("/dev/null/snapshots")}},
            SnapshotError,
            "snapshots",
            ["snapshots.directory"],
        ),
    ],
)
def test_what_is_missing_is_marked_and_told(
    sections: dict[str, Any], changes: dict[str, Any], kind: type[WorkerError], failing: str, parts: list[str]
) -> None:
    lines, failure = checked(small_settings("press-3", **{**sections, **changes}))
    assert isinstance(failure, kind)
    assert [part for part in parts if part not in str(failure)] == []
    marks = {text.split()[1]: text.split()[0] for text in lines}
    assert marks[failing] == "FAIL"
    assert [marks[name] for name in ("lines", "redis", "snapshots") if name != failing] == ["ok"] * (
        2 if failing in {"redis", "snapshots"} else 3
    )


def test_of_an_object_store_its_folder_on_this_machine_is_tried_too(
    sections: dict[str, Any], tmp_path: Path, faults: Faults
) -> None:
    cache = tmp_path / "cache"
    stored = {**sections, "snapshots": {"directory": f"faulty://{tmp_path.name}", "cache": cache}}
    lines, failure = checked(small_settings("press-3", **stored))
    assert failure is None
    assert f"{cache} can be written" in "\n".join(lines)
    cache.rmdir()
    cache.write_text("in the way")
    _, failure = checked(small_settings("press-3", **stored))
    assert isinstance(failure, SnapshotError)
    assert f"snapshots.cache {cache} cannot be written: [Errno 17] File exists" in str(failure)


def test_no_lines_is_a_matter_of_configuration(sections: dict[str, Any]) -> None:
    _, failure = checked(small_settings(**sections))
    assert isinstance(failure, ConfigurationError)
    assert "[[lines]]" in str(failure)


def test_all_items_are_tried_each_failing_one_tells_its_remedy_and_the_first_counts(sections: dict[str, Any]) -> None:
    broken = {**sections, "redis": UNREACHABLE, "model": {"weights": "absent.safetensors"}}
    lines, failure = checked(small_settings(**broken))
    marks = {text.split()[1]: text.split()[0] for text in lines}
    assert [marks[name] for name in ITEMS] == ["FAIL", "FAIL", "-", "ok", "ok", "ok", "FAIL", "-", "ok"]
    assert isinstance(failure, ConfigurationError)
    told = dict(zip(ITEMS, lines, strict=True))
    assert "add a table [[lines]]" in told["lines"]
    assert "redis://127.0.0.1:1/0 is not reached" in told["redis"]
    assert "start it, or set redis.url" in told["redis"]
    assert "absent.safetensors" in told["model"]
    assert "hunter2" not in "".join(lines)


@pytest.mark.parametrize(("place", "failing"), [("PatchFeatures", "model"), ("failpoint", "disk")])
@pytest.mark.parametrize("error", [torch.AcceleratorError, torch.OutOfMemoryError])
def test_a_device_that_fails_is_a_row_with_the_remedy_and_what_follows_is_looked_at(
    sections: dict[str, Any], monkeypatch: pytest.MonkeyPatch, place: str, failing: str, error: type[Exception]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error("CUDA error: unspecified launch failure")

    monkeypatch.setattr(f"worker.engine.{place}", fails)  # when the model goes there, or at the first picture
    lines, failure = checked(small_settings("press-3", **sections))
    assert isinstance(failure, DeviceError)
    marks = {text.split()[1]: text.split()[0] for text in lines}
    assert (marks[failing], list(marks)) == ("FAIL", list(ITEMS))
    remedy = "nvidia-smi" if error is torch.AcceleratorError else "max_batch"
    assert "unspecified launch failure" in str(failure)
    assert remedy in str(failure)


def test_a_server_that_is_too_old_is_refused(sections: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.checks.OLDEST_VERSION", (99, 0))
    _, failure = checked(small_settings("press-3", **sections))
    assert isinstance(failure, RedisUnreachableError)
    assert "too old: 99.0 or newer is needed" in str(failure)


# -- ports -------------------------------------------------------------------------------------------------------------


def test_a_port_that_a_worker_has_is_a_note_and_one_that_another_program_has_a_failure(
    sections: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = HttpServer(HttpSettings(port=0), make_app(Metrics().registry, str, str, str))
    server.start()
    try:
        with monkeypatch.context() as patient:  # the program below that answers nobody is not waited for so long
            patient.setattr("worker.checks.PROBE_SECONDS", 60.0)
            lines, failure = checked(small_settings("press-3", **sections, http={"port": server.port}))
    finally:
        server.stop()
    (http,) = (text for text in lines if text.split()[1] == "http")
    assert (http.split()[0], failure) == ("note", None)
    assert "is a worker's that runs" in http
    with socket.create_server(("127.0.0.1", 0)) as taken:
        taken.settimeout(0)  # it answers nobody
        _, failure = checked(small_settings("press-3", **sections, http={"port": taken.getsockname()[1]}))
    assert isinstance(failure, ConfigurationError)
    assert "choose another http.port" in str(failure)


# -- as JSON -----------------------------------------------------------------------------------------------------------


def test_as_json_each_item_is_a_document_with_its_exit_code(
    sections: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = small_settings("press-3", **{**sections, "model": {"weights": "absent.safetensors"}})
    with pytest.raises(ModelError):
        run_checks(settings, Console(), as_json=True)
    rows = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert [row["item"] for row in rows] == list(ITEMS)
    assert {row["item"]: row["exit_code"] for row in rows if row["exit_code"]} == {"model": 4}
    assert {row["outcome"] for row in rows} == {"ok", "FAIL", "-"}
