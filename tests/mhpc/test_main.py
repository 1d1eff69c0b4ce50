import subprocess
import sys

import pytest
from typer.testing import CliRunner

from mhpc.__main__ import app

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
    code = "import sys, mhpc.__main__; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
