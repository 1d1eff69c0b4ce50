"""Who may be a rank, and what ranks say that do not fit together."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.mhpc.core.ranks import in_ranks
from tests.worker.calling import Call
from tests.worker.helpers import small_settings
from worker.engine import Engine, pick_device
from worker.errors import ConfigurationError, DeviceError, RanksError
from worker.failpoints import VARIABLE, armed
from worker.metrics import Metrics
from worker.ranks import distributed, share
from worker.ranks.crew import _sent, _wait, exchange, receive
from worker.ranks.distributed import TORCHRUNS, agree, hot_line, on_own_device, take_part
from worker.settings import line_configs


@pytest.fixture
def torchruns(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUNS:
        monkeypatch.setenv(name, "1")


def test_without_torchrun_it_is_a_wrong_usage(call: Call, config: Callable[..., Path]) -> None:
    ended = call("run", "--distributed", "--config", config())
    assert ended.code == 2
    assert "RANK" in ended.err
    assert "torchrun --nproc-per-node" in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.usefixtures("torchruns")
@pytest.mark.parametrize(("lines", "named"), [("", "none"), ('[[lines]]\nname="a"\n[[lines]]\nname="b"', "a, b")])
def test_all_ranks_learn_one_line(call: Call, config: Callable[..., Path], lines: str, named: str) -> None:
    ended = call("run", "--distributed", "--config", config(lines=lines or "\n"))
    assert ended.code == 2
    assert f"the configuration has {named}" in ended.err or "lines" in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.usefixtures("torchruns")
def test_a_fleet_has_no_hot_line() -> None:
    with pytest.raises(ConfigurationError, match="those of a fleet"):
        hot_line(small_settings("a", worker={"fleet": True}))


@pytest.mark.parametrize(("device", "gpus", "expected"), [("cpu", 8, "cpu"), ("auto", 0, "cpu"), ("auto", 8, "cuda:3")])
def test_each_rank_has_a_device_of_its_own(
    device: str, gpus: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_gpus(monkeypatch, gpus)
    assert on_own_device(small_settings("a", worker={"device": device})).worker.device == expected


@pytest.mark.parametrize(("device", "gpus"), [("auto", 2), ("cuda:1", 8)])
def test_ranks_that_would_share_a_gpu_are_refused(device: str, gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    has_gpus(monkeypatch, gpus)
    with pytest.raises(ConfigurationError, match="4 ranks on a machine"):
        on_own_device(small_settings("a", worker={"device": device}))


def has_gpus(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")


def agreed(what: str) -> tuple[str, Any]:
    """How this rank's start ends; rank 2 differs from the others."""
    rank = dist.get_rank()
    on = {"model": "a", "learning": "b" if what == "learning" and rank == 2 else "a"}
    if what == "release" and rank == 2:
        vars(distributed)["version"] = lambda _: "9.9"
    try:
        return "started", agree(on, crashed=what == "crashed" and rank == 2)
    except ConfigurationError as error:
        return "told", str(error)
    except SystemExit as ended:
        return "silent", ended.code


@pytest.mark.parametrize(
    ("what", "expected"),
    [("learning", "rank 2 has other learning than rank 0"), ("release", "rank 2 is of release 9.9, rank 0 of")],
)
def test_ranks_that_differ_do_not_start_and_one_says_why(what: str, expected: str, tmp_path: Path) -> None:
    first, *others = in_ranks(tmp_path, agreed, what)
    assert first[0] == "told"
    assert expected in first[1]
    assert "give all ranks the same" in first[1]
    assert others == [("silent", 2)] * 3


def test_ranks_that_are_alike_start_and_know_of_a_crash(tmp_path: Path) -> None:
    assert in_ranks(tmp_path, agreed, "") == [("started", False)] * 4
    assert in_ranks(tmp_path, agreed, "crashed") == [("started", True)] * 4


def test_a_configuration_says_what_counts_and_leaves_out_what_is_a_machines_own() -> None:
    settings, digest = small_settings("a"), distributed._digest
    assert digest(settings, "model") != digest(small_settings("a", model={"bank_size": 7}), "model")
    assert digest(settings, "model") == digest(small_settings("a", model={"max_batch": 8}), "model")


def loses_its_device(folder: str) -> tuple[int, str]:
    """Rank 1's code and what it leaves for its next start, where its device is gone in the middle of its work."""
    settings = small_settings("a", worker={"device": "cpu", "name": "hot"}, snapshots={"directory": Path(folder)})
    if dist.get_rank() == 0:
        engine = Engine(settings.model, pick_device("cpu"), Metrics())
        exchange({}, lambda _: {"precision": str(engine.precision).removeprefix("torch.")})
        agree({"weights": engine.fingerprint})
        _wait(_sent({"do": "beat"}, 1))
        return 0, ""
    vars(share)["failpoint"] = armed("rank=beat-1:lost")
    try:
        take_part(settings, line_configs(settings)[0])
    except DeviceError as error:
        return error.exit_code, (Path(folder) / ".hot.rank1.crash").read_text()
    return 0, "it did not end"


def test_a_rank_whose_device_fails_ends_by_the_devices_code_and_leaves_a_note(tmp_path: Path) -> None:
    _, (code, note) = in_ranks(tmp_path, loses_its_device, str(tmp_path), ranks=2)
    assert code == DeviceError.exit_code
    assert note.startswith("cpu failed: ")


RANK_THAT_HANGS = """
import sys
from pathlib import Path
from worker.runtime.crashes import CrashFile
from worker.ranks.distributed import WatchedShare
file = CrashFile(Path(sys.argv[1]), "hot.rank1")
print(file.open(), flush=True)
WatchedShare(file, 2.0, None, None, lambda: None, 1).do("beat", {})
file.close()
"""


def test_a_rank_that_hangs_ends_by_itself_and_its_next_start_knows(tmp_path: Path) -> None:
    def ended(**failpoint: str) -> tuple[str, int]:
        command, environment = [sys.executable, "-c", RANK_THAT_HANGS, str(tmp_path)], {**os.environ, **failpoint}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
        return done.stdout.splitlines()[-1], done.returncode

    assert ended(**{VARIABLE: "rank=beat-1:hang"}) == ("False", 1)
    assert ended() == ("True", 0)
    assert ended() == ("False", 0)


def waits_for_one_that_is_silent() -> str:
    """Rank 1 hangs: rank 0 does not wait for ever."""
    dist.set_timeout(timedelta(seconds=1))
    if dist.get_rank() == 1:
        time.sleep(5)
        return ""
    try:
        receive(1)
    except RanksError as error:
        return f"{error.exit_code} {error}"
    return "it did not end"


def test_a_rank_that_hangs_is_given_up(tmp_path: Path) -> None:
    told, _ = in_ranks(tmp_path, waits_for_one_that_is_silent, ranks=2)
    assert told.startswith("1 rank 1 is gone, or has not answered in time")
