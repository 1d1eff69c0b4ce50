"""Commands of this project, taken apart by its own parsers and not carried out."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import typer
from typer.exceptions import TyperException

from mhpc.cli import app as mhpc
from worker.cli.app import app as worker

ROOT = Path(__file__).parents[2]
APPS: dict[str, Any] = {"mhpc-worker": typer.main.get_command(worker), "mhpc": typer.main.get_command(mhpc)}
ASSIGNMENT = re.compile(r"[A-Z]+=\S+")


def check(command: str) -> None:
    """Raises where a subcommand, option, argument, make target or variable of make is not one."""
    for part in command.replace("[", "").replace("]", "").split(" && "):
        words = shlex.split(part)
        if words[0] == "make":
            check_make(words[1:])
        elif words[0] in APPS:
            parse(APPS[words[0]], words[1:])


def check_mention(command: str) -> None:
    """As `check`, of a command within a text: it may leave out what it takes, and name several by "a | b | c"."""
    if command.startswith("control "):
        command = f"mhpc-worker {command}"
    first, *others = command.removesuffix(" ...").split(" | ")
    program = first.rsplit(" ", 1)[0]
    for alternative in [first, *(f"{program} {other}" for other in others)]:
        try:
            check(alternative)
        except TyperException as error:
            if type(error).__name__ != "MissingParameter":  # typer gives it no public name
                raise


def parse(command: Any, words: list[str]) -> None:
    """Raises what its parser raises, for an unknown option and for a value of the wrong type, too."""
    if not hasattr(command, "commands"):
        command.make_context(command.name, words)
        return
    if words[0].startswith("-"):  # an option of the whole program, such as --help or --install-completion
        assert words[0] in {"--help", *(name for option in command.params for name in option.opts)}
        return
    assert words[0] in command.commands, f"{words[0]}: one of {', '.join(command.commands)} was expected"
    parse(command.commands[words[0]], words[1:])


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        if ASSIGNMENT.fullmatch(word.split(" ")[0]):
            name = word.partition("=")[0]
            assert f"$({name})" in makefile or f"{name} ?=" in makefile, f"the Makefile knows no {name}"
        else:
            assert re.search(rf"^{re.escape(word)}:", makefile, re.MULTILINE), f"the Makefile has no target {word}"
    subprocess.run(["make", "--dry-run", *words], cwd=ROOT, check=True, capture_output=True)  # noqa: S607 - any make will do
