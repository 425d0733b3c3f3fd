"""Options that all commands share, and how they fail: one line on stderr, an exit status above 0."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from cluster.errors import TuttiError

__all__ = ["DEFAULT_URL", "ApiKey", "Json", "RunId", "Token", "Url", "one_line_errors"]

Url = Annotated[str, typer.Option("--url", envvar="TUTTI_URL", help="Where the service answers.")]
Token = Annotated[
    str, typer.Option("--token", envvar="TUTTI_TOKEN", help="Bearer token.", show_default=False)
]
ApiKey = Annotated[
    str, typer.Option("--api-key", envvar="TUTTI_API_KEY", help="API key.", show_default=False)
]
RunId = Annotated[str, typer.Argument(metavar="ID", help="Id of a Run.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
DEFAULT_URL = "http://127.0.0.1:8000"


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an error of ours into one line and exit status 1."""
    try:
        yield
    except TuttiError as error:
        lines = error.message.splitlines() or [type(error).__name__]
        sys.stderr.write(f"error: {lines[0]}\n")
        raise typer.Exit(1) from None
