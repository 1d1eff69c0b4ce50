"""What the commands say of themselves: help, examples, completion."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import typer

from tests.worker.calling import Call
from worker.cli.app import app
from worker.streams.control import COMMANDS
from worker.streams.line_streams import LineStreams

COMMAND: Any = typer.main.get_command(app)  # typer annotates neither its commands nor their contexts


def commands(command: Any = COMMAND, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All commands with their paths, groups as well."""
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))


PATHS = [" ".join(path) for path, _ in commands()]


def parsed(arguments: list[str]) -> None:
    """Have typer parse a command, and not carry it out; what it does not take is raised."""
    command, context = COMMAND, None
    while hasattr(command, "resolve_command"):
        name, command, arguments = command.resolve_command(context or COMMAND.context_class(COMMAND), arguments)
    command.make_context(name, arguments)


@pytest.mark.parametrize("path", PATHS)
def test_help_fits_into_80_columns(call: Call, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ended = call(*path.split(), "--help")
    assert (ended.code, ended.err) == (0, "")
    assert max(map(len, ended.out.splitlines())) <= 80


@pytest.mark.parametrize("path", PATHS)
def test_lines_of_a_help_are_not_broken_once_more(path: str) -> None:
    """Those of a paragraph stay as they are; what is longer than a terminal leaves a few words on the next."""
    command = dict(commands())[tuple(path.split())]
    paragraphs = [text for text in (command.help or "").split("\n\n") if "\n" in text]
    lines = "\n".join([*paragraphs, command.epilog or ""]).splitlines()
    assert [line for line in lines if len(line) > 78] == []


@pytest.mark.parametrize("path", [" ".join(path) for path, command in commands() if not hasattr(command, "commands")])
def test_a_command_has_examples_and_takes_each_of_them(path: str) -> None:
    command = dict(commands())[tuple(path.split())]
    examples = re.findall(r"^ +mhpc-worker (.*?)(?:   .*| > .*)?$", command.epilog or "", re.MULTILINE)
    assert examples
    for example in examples:
        assert example.startswith(path)
        parsed(shlex.split(example))


def test_the_wrong_example_would_be_noticed() -> None:
    with pytest.raises(typer.TyperException, match="--nonsense"):
        parsed(["tail", "--nonsense"])


# -- completion --------------------------------------------------------------------------------------------------------


def completed(words: str) -> list[str]:
    """What bash is offered for the last of the words."""
    place = len(words.split(" ")) - 1
    environment = {
        **os.environ,
        "_MHPC_WORKER_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(place),
    }
    program = Path(sys.executable).with_name("mhpc-worker")
    return subprocess.run([program], env=environment, capture_output=True, text=True, check=True).stdout.split()


def test_a_shell_completes_lines_as_redis_knows_them(client: redis.Redis, redis_url: str, line: str) -> None:
    for name in (f"{line}-a", f"{line}-b"):
        LineStreams(client, name).ensure_groups()
    offered = completed(f"mhpc-worker tail --redis {redis_url} --line {line}-")
    assert offered == [f"{line}-a", f"{line}-b"]


def test_a_shell_completes_lines_of_the_configuration_and_commands(config: Any, line: str) -> None:
    path = config(url="redis://127.0.0.1:1/0")
    assert completed(f"mhpc-worker status --config {path} --wat") == ["--watch"]
    assert completed(f"mhpc-worker tail --config {path} --line t") == [line]
    assert completed(f"mhpc-worker control {line} re") == [name for name in COMMANDS if name.startswith("re")]


def test_a_shell_is_offered_nothing_where_nothing_can_be_known() -> None:
    assert completed("mhpc-worker tail --redis redis://127.0.0.1:1/0 --line ") == []
    assert completed("mhpc-worker tail --config absent.toml --line ") == []


def test_completion_can_be_installed(call: Call) -> None:
    told = call("--help").out
    assert "--install-completion" in told
    assert "--show-completion" in told
