"""Logs: structlog to stderr, for people on a terminal, as JSON elsewhere."""

import sys
from typing import Literal

import structlog


def configure_logs(form: Literal["auto", "console", "json"]) -> None:
    """One line per event; "auto" is for people on a terminal and JSON elsewhere."""
    people = form == "console" or (form == "auto" and sys.stderr.isatty())
    renderer: structlog.typing.Processor
    renderer = structlog.dev.ConsoleRenderer() if people else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
