import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = {"the module": [sys.executable, "-m", "mhpc"], "the script": [str(Path(sys.executable).with_name("mhpc"))]}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_ctrl_c_while_a_command_is_imported_ends_it_without_a_traceback(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text(f"import os\nos.kill(os.getpid(), {int(signal.SIGINT)})\nraise SystemExit(70)\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ended = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False, env=environment)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")
