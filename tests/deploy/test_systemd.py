"""deploy/systemd: units that systemd takes, that fit the worker, and that leave it few ways to do harm."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from worker.configuration import load_settings
from worker.daemon import FINISH_SECONDS
from worker.errors import ConfigurationError, ModelError
from worker.runtime.pulse import STALLED_SECONDS

FOLDER = Path(__file__).parents[2] / "deploy" / "systemd"
UNITS = ("mhpc-worker@.service", "mhpc-console.service")
EXPOSURE = 20  # tenths; 0 is a process that can do nothing, 100 one of root's


def told(unit: str) -> dict[str, list[str]]:
    """Every key of a unit, with all that is assigned to it."""
    found: dict[str, list[str]] = {}
    for text in (FOLDER / unit).read_text().splitlines():
        if "=" in text and not text.startswith(("#", "[")):
            key, _, value = text.partition("=")
            found.setdefault(key, []).append(value)
    return found


def seconds(unit: str, key: str) -> float:
    (value,) = told(unit)[key]
    return float(value)


@pytest.fixture(scope="module")
def systemd_analyze() -> str:
    if not (found := shutil.which("systemd-analyze")):
        pytest.skip("no systemd-analyze on the PATH; Debian's package systemd has it")
    return found


def analyzed(systemd_analyze: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [systemd_analyze, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The units, where the program that they start exists."""
    folder = tmp_path_factory.mktemp("units")
    program = Path(sys.executable).with_name("mhpc-worker")
    assert program.is_file()
    for unit in UNITS:
        text = (FOLDER / unit).read_text()
        assert text.count("/opt/mhpc/bin/mhpc-worker") == 1
        (folder / unit).write_text(text.replace("/opt/mhpc/bin/mhpc-worker", str(program)))
    return folder


@pytest.mark.parametrize("unit", ["mhpc-worker@station-1.service", "mhpc-console.service"])
def test_systemd_has_nothing_to_say_about_a_unit(systemd_analyze: str, installed: Path, unit: str) -> None:
    ended = analyzed(systemd_analyze, "verify", "--man=no", installed / unit)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_systemd_has_nothing_to_say_about_a_worker_on_a_gpu(systemd_analyze: str, installed: Path) -> None:
    drop_in = installed / "mhpc-worker@station-2.service.d"
    drop_in.mkdir()
    shutil.copy(FOLDER / "gpu.conf", drop_in)
    ended = analyzed(systemd_analyze, "verify", "--man=no", installed / "mhpc-worker@station-2.service")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_systemd_notices_a_key_that_it_does_not_know(systemd_analyze: str, installed: Path, tmp_path: Path) -> None:
    text = (installed / "mhpc-console.service").read_text()
    (tmp_path / "odd.service").write_text(text.replace("WatchdogSec", "WatchDogSeconds"))
    assert "WatchDogSeconds" in analyzed(systemd_analyze, "verify", "--man=no", tmp_path / "odd.service").stderr


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_leaves_few_ways_to_do_harm(systemd_analyze: str, unit: str) -> None:
    ended = analyzed(systemd_analyze, "security", "--offline=yes", f"--threshold={EXPOSURE}", FOLDER / unit)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Overall exposure level" in ended.stdout


@pytest.mark.parametrize("unit", UNITS)
def test_what_wants_a_person_is_not_started_over_and_over(unit: str) -> None:
    codes = {ConfigurationError.exit_code, ModelError.exit_code}
    (prevented,) = told(unit)["RestartPreventExitStatus"]
    assert set(map(int, prevented.split())) == codes
    assert told(unit)["Restart"] == ["on-failure"]


def test_the_watchdog_waits_as_long_as_the_health_probe_and_a_stop_long_enough_to_drain() -> None:
    unit = "mhpc-worker@.service"
    assert told(unit)["Type"] == ["notify"]
    assert seconds(unit, "WatchdogSec") == STALLED_SECONDS
    assert seconds(unit, "TimeoutStopSec") > 2 * FINISH_SECONDS


@pytest.mark.parametrize("unit", UNITS)
def test_what_a_unit_sets_by_the_environment_is_what_can_be_configured(
    unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = dict(value.partition("=")[::2] for value in told(unit)["Environment"])
    own = {name: value for name, value in given.items() if name.startswith("MHPC_")}
    assert own
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    settings = load_settings(None)
    for name, value in own.items():
        section, key = name.removeprefix("MHPC_").lower().split("__")
        assert str(getattr(getattr(settings, section), key)) == value
    credentials = {value.partition(":")[0] for value in told(unit)["LoadCredential"]}
    assert {value.removeprefix("%d/") for value in own.values() if value.startswith("%d/")} == credentials
