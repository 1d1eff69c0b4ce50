"""What the commands share: their options, and what these stand for."""

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import redis as redis_py
import typer

from worker.errors import ConfigurationError, WorkerError, printable
from worker.runtime.environment import user_name
from worker.settings import LINE_NAME, Settings


def complete_line(context: typer.Context, incomplete: str) -> list[str]:
    """For a shell: names of lines of that beginning, by the configuration or else as Redis knows them."""
    try:
        settings = settings_of(context.params.get("config"), context.params.get("redis"))
        names = [item.name for item in settings.lines]
        if not names:
            from worker import views

            names = views.known_lines(views.connect(settings))
    except (WorkerError, redis_py.RedisError):  # a shell has no place for an error; the command itself tells it
        return []
    return [name for name in names if name.startswith(incomplete)]


ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="TOML file; see config.example.toml.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="JSON instead of text, one document in each row.")]
LineOption = Annotated[
    str | None,
    typer.Option("--line", "-l", help="The line; may be left out if there is but one.", autocompletion=complete_line),
]
ByOption = Annotated[
    str, typer.Option("--by", default_factory=user_name, help="Who asks; it is logged with the command.")
]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for the keeper's answer.")]
UrlOption = Annotated[str | None, typer.Option("--redis", help="Address of Redis, instead of the configuration's.")]


def settings_of(config: Path | None, redis: str | None) -> Settings:
    from worker.configuration import load_settings

    return load_settings(config, {"redis": {"url": redis}} if redis else {})


def line_of(settings: Settings, line: str | None) -> str:
    """The line that was named, or the only one there is."""
    names = [item.name for item in settings.lines]
    if line is not None:
        if not LINE_NAME.match(line):
            raise ConfigurationError(f"line {line!r}: expected 1 to 63 of a-z 0-9 _ -, the first a letter or a digit")
        return line
    if len(names) == 1:
        return names[0]
    listed = f"one of {', '.join(names)}" if names else "a line's name"
    raise ConfigurationError(f"which line? expected --line with {listed}")


def connect_to(settings: Settings, line: str) -> redis_py.Redis:
    """A client of the Redis in which the line is; raises ConfigurationError where nobody there knows it."""
    from worker import views

    client = views.connect(settings)
    if problem := views.unknown(settings, client, line):
        raise ConfigurationError(problem)
    return client


def streams_of(line: str | None, config: Path | None, redis: str | None) -> tuple[Settings, Any]:
    """The settings, and the streams of the line that was named."""
    from worker.streams.line_streams import LineStreams

    settings = settings_of(config, redis)
    name = line_of(settings, line)
    return settings, LineStreams(connect_to(settings, name), name)


def local_time(when: str | None) -> str:
    """ISO 8601, for a table in this machine's time."""
    return "-" if when is None else datetime.fromisoformat(when).astimezone().strftime("%m-%d %H:%M")


def tell(settings: Settings, line: str, name: str, args: list[str], by: str, timeout: float, as_json: bool) -> None:
    """Send a line a command and print its keeper's answer; exit code 1 where that is a refusal."""
    from worker import views

    reply = views.command(connect_to(settings, line), line, name, args, by, timeout)
    typer.echo(json.dumps(reply._asdict()) if as_json else printable(reply.text))
    if not reply.ok:
        raise typer.Exit(1)


def examples(*lines: str) -> str:
    """The end of a command's help; it begins with an empty line, so that what follows keeps its indentation."""
    return "\n".join(["", "Examples:", *(f"  mhpc-worker {line}" for line in lines)])
