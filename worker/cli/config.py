"""`mhpc-worker config`: what can be configured, and what is."""

import json
import os

import typer

from worker.cli.options import ConfigOption, JsonFlag, UrlOption, examples, settings_of
from worker.settings import ENV_PREFIX

config = typer.Typer(no_args_is_help=True, help="Show what is configured, and what can be.")


@config.command(epilog=examples("config show --config config.toml", "config show -c config.toml --json"))
def show(config: ConfigOption = None, redis: UrlOption = None, as_json: JsonFlag = False) -> None:
    """Print every key with the value that holds, as TOML; secrets are left out.

    Behind a value that is no default stands where it comes from.
    """
    from worker import described

    settings = settings_of(config, redis)

    def source(table: str, key: str) -> str:
        if redis and (table, key) == ("redis", "url"):
            return "--redis"
        return _variable(table, key) or str(config)

    if as_json:
        typer.echo(json.dumps(described.as_json(settings)))
    else:
        typer.echo(described.as_toml(settings, source), nl=False)


def _variable(table: str, key: str) -> str:
    """The environment's name of a key, or of its table, if it has one."""
    names = {name.upper(): name for name in os.environ}
    asked = (f"{ENV_PREFIX}{table}__{key}", f"{ENV_PREFIX}{table}") if table else (ENV_PREFIX + key,)
    return next((names[name.upper()] for name in asked if name.upper() in names), "")


@config.command(epilog=examples("config schema > mhpc.schema.json"))
def schema() -> None:
    """Print the JSON schema of the configuration, for editors that check TOML."""
    from worker import described

    typer.echo(json.dumps(described.schema(), indent=2, ensure_ascii=False))


@config.command(epilog=examples("config docs > docs/configure.md"))
def docs() -> None:
    """Print the page that explains every key, as Markdown."""
    from worker import described

    typer.echo(described.as_markdown(), nl=False)
