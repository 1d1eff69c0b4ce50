import subprocess
import sys

import pytest
from typer.testing import CliRunner

from mhpc.cli import app
from mhpc.core.backbones import BackboneError

COMMANDS = ("train", "evaluate", "ablate", "coverage")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_into_80_columns(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"], prog_name="mhpc", env={"COLUMNS": "80"})
    assert result.exit_code == 0
    assert f"mhpc {command}" in result.stdout
    assert max(len(line) for line in result.stdout.splitlines()) <= 80


def test_the_commands_are_listed_when_none_is_given() -> None:
    said = CliRunner().invoke(app, []).output
    assert all(command in said for command in COMMANDS)


def test_the_command_line_starts_without_matplotlib() -> None:
    code = "import sys, mhpc.cli; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def trained(*options: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["train", "--teacher-layers", "a,b", "--output", "w.safetensors", *options])
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    return result.exit_code, result.stderr


def test_training_on_a_device_that_is_not_there_ends_with_5() -> None:
    code, said = trained("--teacher", "a.b:c", "--device", "cuda:99")
    assert (code, said.startswith("mhpc train: device 'cuda:99' cannot be used (")) == (5, True)


def test_training_with_a_crop_that_does_not_fit_ends_with_2() -> None:
    code, said = trained("--teacher", "a.b:c", "--crop", "33")
    assert (code, said) == (2, "mhpc train: crop is 33; expected a multiple of 16, the stride of layer3\n")


@pytest.mark.parametrize(
    ("error", "code"), [(BackboneError("no such teacher"), 4), (OSError(28, "No space left on device"), 1)]
)
def test_training_ends_by_the_table_of_exit_codes(error: Exception, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr("mhpc.training.run.train", fail)
    assert trained("--teacher", "a.b:c") == (code, f"mhpc train: {error}\n")


def test_the_help_says_what_jitter_is_without_the_option() -> None:
    said = CliRunner().invoke(app, ["evaluate", "--help"], env={"COLUMNS": "80"}).stdout
    assert "default: (shrinkage without PCA, else none)" in " ".join(said.replace("│", " ").split())
