"""`mhpc-worker`: the command line, a module a command."""

from worker.cli.app import app, main

__all__ = ["app", "main"]
