"""`mhpc-worker console`: the live page."""

from typing import Annotated, Any

import typer

from worker.cli.options import ConfigOption, UrlOption

HostOption = Annotated[str | None, typer.Option("--host", help="Address to listen on, instead of console.host.")]
PortOption = Annotated[
    int | None, typer.Option("--port", "-p", min=0, max=65535, help="Port, instead of console.port; 0: any free one.")
]


def console(
    config: ConfigOption = None, redis: UrlOption = None, host: HostOption = None, port: PortOption = None
) -> None:
    """Serve the live page: every line, its scores and flagged parts, and buttons for feedback.

    It speaks to Redis alone and can run anywhere. Everybody may look; to press a
    button takes the printed link, or a token of the configuration.
    """
    from worker.configuration import load_settings
    from worker.console.server import serve
    from worker.runtime.logs import configure_logs

    asked = {name: value for name, value in {"host": host, "port": port}.items() if value is not None}
    flags: dict[str, Any] = {"redis": {"url": redis}} if redis else {}
    settings = load_settings(config, flags | ({"console": asked} if asked else {}))
    configure_logs(settings.log_format)
    serve(settings)
