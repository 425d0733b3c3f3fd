"""The command line: `tutti up` runs the service, the other commands talk to one over HTTP.

It holds no rules of its own. Every failure is one line on stderr and an exit status other than 0. Ray is
imported by the commands that start it, and by no other: `tutti ls` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

from cluster.errors import InvalidInput
from cluster.settings import Settings, describe_settings
from serve_app.api_client import ApiClient, read_task_input
from serve_app.cli_capacity import capacity, limits_app, pools_app, why
from serve_app.cli_options import DEFAULT_URL, ApiKey, Json, RunId, Token, Url, one_line_errors
from serve_app.cli_output import print_json, show_run, show_runs, show_settings, watch_run

__all__ = ["app", "cancel", "demo", "get", "list_runs", "main", "settings", "submit", "up", "watch"]

app = typer.Typer(
    name="tutti",
    help="A durable orchestrator for AI work on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line."""
    app()


@app.command()
def up(
    *,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    http_port: Annotated[int | None, typer.Option(help="HTTP port. [default: 8000]")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="gRPC port. [default: 50051]")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Data directory. [default: ./.tutti]")] = None,
    redis_url: Annotated[str | None, typer.Option(help="Redis to use instead of an embedded one.")] = None,
    ray_address: Annotated[str | None, typer.Option(help="Ray cluster to join.")] = None,
    durability: Annotated[str | None, typer.Option(help="strict or everysec. [default: strict]")] = None,
) -> None:
    """Run the service in the foreground; Ctrl-C drains and ends it. Other settings: `tutti settings`."""
    with one_line_errors():
        from serve_app.launch.up import run_until_signalled

        settings = Settings.from_environment(
            host=host,
            http_port=http_port,
            grpc_port=grpc_port,
            data_dir=data_dir,
            redis_url=redis_url,
            ray_address=ray_address,
            durability=durability,
        )
        run_until_signalled(settings, announce=_line_to(sys.stdout), say=_line_to(sys.stderr))


@app.command()
def submit(
    *,
    plan: Annotated[
        Path | None, typer.Argument(metavar="[PLAN.json]", help="A Plan, or a whole request.")
    ] = None,
    task_type: Annotated[
        str | None, typer.Option("--type", help="Submit a task of this type instead.")
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help="File for --type, or JSON (or @file) as the Plan's inputs."),
    ] = None,
    run_id: Annotated[
        str | None, typer.Option("--id", help="Id and idempotency key. [default: made up]")
    ] = None,
    mode: Annotated[str | None, typer.Option(help="sequential, parallel or hybrid, for --type.")] = None,
    priority: Annotated[
        int | None, typer.Option(help="0-100 for a Plan, 0-10 for --type; higher first.")
    ] = None,
    timeout_s: Annotated[float | None, typer.Option("--timeout", help="Limit in seconds.")] = None,
    metadata: Annotated[list[str] | None, typer.Option("--metadata", help="name=value, for --type.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow it to its end.")] = False,
    url: Url = DEFAULT_URL,
    token: Token = "",
    api_key: ApiKey = "",
) -> None:
    """Submit a Plan, or a task by its type; print the id."""
    with one_line_errors(), ApiClient(url, token, api_key) as client:
        if (plan is None) == (task_type is None):
            raise InvalidInput("give either a PLAN.json or --type")
        if task_type is not None:
            body = _task_body(
                task_type,
                inputs=inputs or [],
                metadata=metadata or [],
                mode=mode,
                priority=priority,
                timeout_s=timeout_s,
            )
            accepted = client.submit_task(body if run_id is None else {"task_id": run_id, **body})
        elif plan is not None:
            body = _run_body(plan, inputs or [])
            given = {"run_id": run_id, "priority": priority, "timeout_s": timeout_s}
            accepted = client.submit_run(
                {**body, **{name: value for name, value in given.items() if value is not None}}
            )
        sys.stdout.write(f"{accepted}\n")
        sys.stdout.flush()
        if watch:
            _watch(client, accepted)


@app.command()
def watch(run_id: RunId, url: Url = DEFAULT_URL, token: Token = "", api_key: ApiKey = "") -> None:
    """Follow a Run with progress bars until it has ended; exit 1 unless it succeeded."""
    with one_line_errors(), ApiClient(url, token, api_key) as client:
        _watch(client, run_id)


@app.command()
def get(
    run_id: RunId,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
    token: Token = "",
    api_key: ApiKey = "",
) -> None:
    """Show a Run with its Steps and its output."""
    with one_line_errors(), ApiClient(url, token, api_key) as client:
        run = client.get_run(run_id)
        if as_json:
            print_json(run)
        else:
            show_run(Console(), run)


@app.command()
def cancel(
    run_id: RunId,
    reason: Annotated[str, typer.Option(help="Why, for people.")] = "",
    url: Url = DEFAULT_URL,
    token: Token = "",
    api_key: ApiKey = "",
) -> None:
    """Cancel a Run."""
    with one_line_errors(), ApiClient(url, token, api_key) as client:
        sys.stdout.write(f"{client.cancel_run(run_id, reason)['status']}\n")


@app.command("ls")
def list_runs(
    *,
    status: Annotated[
        list[str] | None, typer.Option(help="Only Runs of this status; may be repeated.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, newest first.")] = 20,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
    token: Token = "",
    api_key: ApiKey = "",
) -> None:
    """List Runs, newest first."""
    with one_line_errors(), ApiClient(url, token, api_key) as client:
        page = client.list_runs(status or [], limit)
        if as_json:
            print_json(page)
        else:
            show_runs(Console(), page["runs"])


app.command()(why)
app.command()(capacity)
app.add_typer(pools_app)
app.add_typer(limits_app)


@app.command()
def settings(as_json: Json = False) -> None:
    """List all settings with meaning, unit, default and present value; secrets are masked."""
    with one_line_errors():
        lines = describe_settings(Settings.from_environment())
        if as_json:
            print_json([asdict(line) for line in lines])
        else:
            show_settings(Console(), lines)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("out"),
    data_dir: Annotated[Path, typer.Option(help="Data directory of the demo.")] = Path(".tutti/demo"),
) -> None:
    """Start the service on free ports, make a report of the sample data, show it, and end everything."""
    with one_line_errors():
        from serve_app.launch.demo import run_demo

        run_demo(Console(), out, data_dir)


def _watch(client: ApiClient, run_id: str) -> None:
    status = watch_run(Console(), client.get_run(run_id), client.follow(run_id))
    run = client.get_run(run_id)
    sys.stdout.write(f"{run['status']}\n")
    if run["status"] != "succeeded" or status != run["status"]:
        error = run.get("error")
        if error:
            sys.stderr.write(f"error: {error['code']}: {error['message']}\n")
        raise typer.Exit(1)


def _task_body(
    task_type: str,
    *,
    inputs: list[str],
    metadata: list[str],
    mode: str | None,
    priority: int | None,
    timeout_s: float | None,
) -> dict[str, Any]:
    pairs = [text.partition("=") for text in metadata]
    if any(not separator for _, separator, _ in pairs):
        raise InvalidInput("--metadata must be name=value")
    body: dict[str, Any] = {
        "task_type": task_type,
        "inputs": [read_task_input(Path(path), f"input-{number}") for number, path in enumerate(inputs, 1)],
        "metadata": {name: _json_or_text(value) for name, _, value in pairs},
    }
    if mode is not None:
        body["execution_mode"] = mode
    if priority is not None:
        body["priority"] = priority
    if timeout_s is not None:
        body["timeout_ms"] = round(timeout_s * 1000)
    return body


def _run_body(path: Path, inputs: list[str]) -> dict[str, Any]:
    document = _read_json(path)
    if not isinstance(document, dict) or not ({"plan", "steps"} & document.keys()):
        raise InvalidInput(f'{path} is neither a Plan (with "steps") nor a request (with "plan")')
    body = document if "plan" in document else {"plan": document}
    if len(inputs) > 1:
        raise InvalidInput("--input can be given once with a Plan")
    for text in inputs:
        body = {**body, "inputs": _read_json(Path(text[1:])) if text.startswith("@") else _parse_json(text)}
    return body


def _read_json(path: Path) -> Any:
    try:
        return orjson.loads(path.read_bytes())
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from None
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"{path} is not JSON: {error}") from None


def _parse_json(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"--input is not JSON: {error}") from None


def _json_or_text(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _line_to(stream: Any) -> Callable[[str], None]:
    def write(line: str) -> None:
        stream.write(f"{line}\n")
        stream.flush()

    return write


if __name__ == "__main__":
    main()
