"""`mhpc-worker lines`: what a fleet serves, declared in Redis."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker.cli.options import ConfigOption, JsonFlag, UrlOption, examples, settings_of
from worker.configuration import line_settings
from worker.errors import AbsentError, ConfigurationError, StateError, WorkerError, printable
from worker.settings import LINES_KEY, LineSettings, Settings

SERVED = "workers with worker.fleet = true serve it within seconds"

lines = typer.Typer(no_args_is_help=True, help="Declare the lines that a fleet of workers serves.")


def complete_declared(context: typer.Context, incomplete: str) -> list[str]:
    """For a shell: names of declared lines of that beginning."""
    import redis as redis_py

    try:
        found = _client(context.params.get("config"), context.params.get("redis")).hkeys(LINES_KEY)
    except (WorkerError, redis_py.RedisError):  # a shell has no place for an error; the command itself tells it
        return []
    names = sorted(name.decode(errors="replace") for name in found)
    return [name for name in names if name.startswith(incomplete)]


def complete_key(incomplete: str) -> list[str]:
    """For a shell: keys that --set takes, with the equals sign."""
    return [f"{key}=" for key in _keys() if key.startswith(incomplete)]


NameArgument = Annotated[str, typer.Argument(help="The line.", autocompletion=complete_declared)]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="One of those keys, dotted.", autocompletion=complete_key),
]


@lines.command(
    epilog=examples(
        "lines add press-3 --config config.toml",
        "lines add press-4 --set learning.images=300 --set weight=2",
        'lines add press-4 \'{"scoring": {"top_k": 1}}\'',
    )
)
def add(
    name: NameArgument,
    given: Annotated[str | None, typer.Argument(metavar="JSON", help="Its settings, keyed as in the file.")] = None,
    changes: SetOption = None,
    config: ConfigOption = None,
    redis: UrlOption = None,
) -> None:
    """Declare a line, or give one that is declared other settings.

    What is left out is as the workers' own tables say.

    A line that has learned goes on only by the scoring.top_k of that time.
    """
    from worker import views

    settings = _assembled(given, changes or [])
    line = line_settings(name, json.dumps(settings), f"line {name}")
    value = line.model_dump_json(exclude={"name"}, exclude_unset=True)
    workers = settings_of(config, redis)
    client = views.connect(workers)
    told = _other_top_k(client, line, workers)
    new = client.hset(LINES_KEY, name, value)
    typer.echo(f"line {name} is declared, {SERVED}" if new else f"line {name} has other settings, {SERVED}")
    if told:
        typer.echo(told)


@lines.command(epilog=examples("lines remove press-3 --config config.toml"))
def remove(name: NameArgument, config: ConfigOption = None, redis: UrlOption = None) -> None:
    """Let the fleet serve a line no more; its streams and its versions stay."""
    if not _client(config, redis).hdel(LINES_KEY, name):
        raise AbsentError(f"line {name!r:.80} is not declared; mhpc-worker lines list shows those that are")
    typer.echo(f"line {name} is declared no more; its streams and versions stay")


@lines.command("list", epilog=examples("lines list --config config.toml", "lines list --json"))
def list_lines(config: ConfigOption = None, redis: UrlOption = None, as_json: JsonFlag = False) -> None:
    """List the declared lines with their settings and keepers."""
    from worker.streams.ids import worker_of
    from worker.streams.line_streams import LineStreams

    client = _client(config, redis)
    rows = []
    for field, value in sorted(client.hgetall(LINES_KEY).items()):
        name, problem, settings = field.decode(errors="replace"), "", dict[str, Any]()
        holder: bytes | None = client.get(LineStreams(client, name).lease)
        try:
            settings = line_settings(name, value, "not usable").model_dump(exclude={"name"}, exclude_unset=True)
        except ConfigurationError as error:
            problem = str(error)
        keeper = worker_of(holder.decode(errors="replace")) if holder else None
        rows.append({"line": name, "settings": settings, "keeper": keeper, "problem": problem})
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row))
    elif rows:
        Console(highlight=False).print(_table(rows))
    else:
        typer.echo("no line is declared; mhpc-worker lines add NAME declares one")


def _client(config: Path | None, redis: str | None) -> Any:
    from worker import views

    return views.connect(settings_of(config, redis))


def _other_top_k(client: Any, line: LineSettings, settings: Settings) -> str:
    """What is to be said of a line that has a model, and is given another top_k than that was calibrated with; where
    its version does not lie here, than it was declared with: it is declared all the same, and this may restore it.

    Args:
        settings: by whose own tables the workers are taken to go, where these say where the version lies.
    """
    import redis as redis_py

    from worker.streams.line_streams import LineStreams

    try:
        before = _top_k(line_settings(line.name, client.hget(LINES_KEY, line.name) or b"{}", "not usable"))
    except ConfigurationError:
        before = None
    try:
        model = LineStreams(client, line.name).state().get("model")
    except (redis_py.ResponseError, StateError):  # `status` says what is wrong there
        model = ""
    after = _top_k(line)
    if model and (found := _calibrated_with(settings, line.name, model)) is not None:
        if found == (wanted := settings.scoring.top_k if after is None else after):
            return ""
        return (
            f"line {line.name}: scoring.top_k is {wanted}, its version {printable(model)} was calibrated with {found}: "
            f"workers refuse it and answer nothing; declare the line with --set scoring.top_k={found}, or learn anew "
            "under another line name"
        )
    if after == before or not model:
        return ""
    was, now = ("as the workers' own tables say" if top_k is None else str(top_k) for top_k in (before, after))
    return (
        f"line {line.name}: scoring.top_k was {was}, and is {now}: unless its version {printable(model)} was "
        "calibrated with that, workers refuse it and answer nothing; declare the line as before, or learn anew under "
        "another line name"
    )


def _calibrated_with(settings: Settings, line: str, model: str) -> int | None:
    """The top_k that a version says, unverified; None where it does not lie in a folder of this machine."""
    from safetensors import SafetensorError, safe_open

    root = settings.snapshots.directory
    if not isinstance(root, Path) or Path(model).name != model:  # anybody may have written the state
        return None
    path = root / line / f"{model}.safetensors"
    try:
        if not path.is_file():  # whoever opens a pipe waits for ever
            return None
        with safe_open(path, framework="np") as file:  # of torch, its import would take seconds
            told = json.loads(file.metadata()["mhpc"])["top_k"]
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RecursionError):
        return None
    return told if type(told) is int else None


def _top_k(line: LineSettings) -> int | None:
    """None where the workers' own holds."""
    return line.scoring.top_k if line.scoring and "top_k" in line.scoring.model_fields_set else None


def _assembled(given: str | None, changes: list[str]) -> dict[str, Any]:
    """The settings that JSON and --set say together; where both say a key, --set holds."""
    try:
        settings = json.loads(given or "{}")
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"JSON {given!r:.80}: {error}; expected an object, such as '{{}}'") from None
    if not isinstance(settings, dict):
        raise ConfigurationError(f"JSON {given!r:.80}: expected an object, such as '{{\"bank_size\": 2000}}'")
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or key not in _keys():
            raise ConfigurationError(f"--set {change!r:.80}: expected KEY=VALUE, KEY one of {', '.join(_keys())}")
        *tables, last = key.split(".")
        table = settings
        for name in tables:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                raise ConfigurationError(f"JSON {given!r:.80}: {name} is {table!r:.40}, expected an object")
        table[last] = _value(value)
    return settings


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # a text: what expects another kind refuses it
        return text


def _keys() -> list[str]:
    """What a line may override, dotted."""
    found = list[str]()
    for name, field in LineSettings.model_fields.items():
        kinds = getattr(field.annotation, "__args__", ())
        table = next((kind for kind in kinds if hasattr(kind, "model_fields")), None)
        found += [f"{name}.{key}" for key in table.model_fields] if table else [name]
    return sorted(set(found) - {"name"})


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for heading in ("line", "keeper"):
        table.add_column(heading, overflow="fold")
    table.add_column("settings", overflow="fold")
    for row in rows:
        settings = Text(row["problem"], "bold red") if row["problem"] else Text(_told(row["settings"]))
        table.add_row(Text(printable(row["line"])), Text(printable(row["keeper"] or "-")), settings)
    return table


def _told(settings: dict[str, Any], above: str = "") -> str:
    """As --set takes it."""
    told = [
        _told(value, f"{key}.") if isinstance(value, dict) else f"{above}{key}={json.dumps(value)}"
        for key, value in settings.items()
    ]
    return " ".join(told) or "as the workers' own tables say"
