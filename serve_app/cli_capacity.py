"""Commands around capacity: `tutti pools`, `limits`, `capacity`, `why`. They hold no rules of their own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from cluster.errors import InvalidInput
from serve_app.api_client import ApiClient
from serve_app.cli_options import DEFAULT_URL, ApiKey, Json, RunId, Token, Url, one_line_errors
from serve_app.cli_output import print_json
from serve_app.cli_tables import show_capacity, show_limits, show_pools, show_waits

__all__ = [
    "capacity",
    "limits_app",
    "list_limits",
    "list_pools",
    "pools_app",
    "remove_limit",
    "remove_pool",
    "set_limit",
    "set_pools",
    "why",
]

pools_app = typer.Typer(name="pools", help="List pools, declare them, remove them.")
limits_app = typer.Typer(name="limits", help="List concurrency and rate keys, limit them, free them.")


@pools_app.callback(invoke_without_command=True)
def list_pools(
    context: typer.Context,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
    token: Token = "",
    api_key: ApiKey = "",
) -> None:
    """List pools: declared how, and how they stand."""
    if context.invoked_subcommand is not None:
        _refuse_options_before(context)
        return
    with one_line_errors(), ApiClient(url, token, api_key) as client:
        page = client.list_pools()
        if as_json:
            print_json(page)
        else:
            show_pools(Console(), page)


@pools_app.command("set")
def set_pools(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="YAML or JSON of a pool, or of `pools: [...]`; - is stdin.")
    ],
    url: Url = DEFAULT_URL,
    token: Token = "",
    api_key: ApiKey = "",
) -> None:
    """Declare pools, or change them; acts on what runs."""
    with one_line_errors(), ApiClient(url, token, api_key) as client:
        for spec in _read_pools(file):
            sys.stdout.write(f"{client.put_pool(spec['name'], spec)['name']}\n")


@pools_app.command("rm")
def remove_pool(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a pool.")],
    url: Url = DEFAULT_URL,
    token: Token = "",
    api_key: ApiKey = "",
) -> None:
    """Remove a pool, wherever it was declared; its replicas finish what they have."""
    with one_line_errors(), ApiClient(url, token, api_key) as client:
        client.remove_pool(name)


@limits_app.callback(invoke_without_command=True)
def list_limits(
    context: typer.Context,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
    token: Token = "",
    api_key: ApiKey = "",
) -> None:
    """List limited keys and how many Steps have them."""
    if context.invoked_subcommand is not None:
        _refuse_options_before(context)
        return
    with one_line_errors(), ApiClient(url, token, api_key) as client:
        page = client.list_limits()
        if as_json:
            print_json(page)
        else:
            show_limits(Console(), page["limits"])


_Key = Annotated[
    str, typer.Argument(metavar="KEY", help="tenant:NAME, capability:NAME, or your own; * is a pattern.")
]


@limits_app.command("set")
def set_limit(
    key: _Key,
    *,
    max_concurrent: Annotated[int | None, typer.Option("--max", help="How many Steps at a time.")] = None,
    rate: Annotated[str | None, typer.Option(help="How many may begin: 10/s, 600/m, 5000/h.")] = None,
    burst: Annotated[float | None, typer.Option(help="How many at once after a pause. [default: 1]")] = None,
    url: Url = DEFAULT_URL,
    token: Token = "",
    api_key: ApiKey = "",
) -> None:
    """Limit a key."""
    given = {"max_concurrent": max_concurrent, "rate": rate, "burst": burst}
    with one_line_errors(), ApiClient(url, token, api_key) as client:
        client.put_limit(key, {name: value for name, value in given.items() if value is not None})


@limits_app.command("rm")
def remove_limit(
    key: _Key,
    url: Url = DEFAULT_URL,
    token: Token = "",
    api_key: ApiKey = "",
) -> None:
    """Free a key, wherever it was limited."""
    with one_line_errors(), ApiClient(url, token, api_key) as client:
        client.remove_limit(key)


def capacity(as_json: Json = False, url: Url = DEFAULT_URL, token: Token = "", api_key: ApiKey = "") -> None:
    """Show nodes and devices, who holds them since when, and what waits."""
    with one_line_errors(), ApiClient(url, token, api_key) as client:
        found = client.capacity()
        if as_json:
            print_json(found)
        else:
            show_capacity(Console(), found)


def why(
    run_id: RunId, as_json: Json = False, url: Url = DEFAULT_URL, token: Token = "", api_key: ApiKey = ""
) -> None:
    """Say why the Steps of a Run wait, and until when."""
    with one_line_errors(), ApiClient(url, token, api_key) as client:
        told = client.why(run_id)
        if as_json:
            print_json(told)
        else:
            show_waits(Console(), told)


def _refuse_options_before(context: typer.Context) -> None:
    """Refuse what would have no effect: `tutti pools --url X rm P` must not remove P elsewhere."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            sys.stderr.write(f"error: options go after `{context.invoked_subcommand}`\n")
            raise typer.Exit(2)


def _read_pools(file: str) -> list[dict[str, Any]]:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text("utf-8")
        document = yaml.safe_load(text)
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInput(f"{file} is not YAML: {str(error).splitlines()[0]}") from None
    specs = document.get("pools") if isinstance(document, dict) and "pools" in document else [document]
    if not isinstance(specs, list) or not specs:
        raise InvalidInput(f"{file} declares no pool")
    for spec in specs:
        if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
            raise InvalidInput(f"{file}: each pool needs a name")
    return specs
