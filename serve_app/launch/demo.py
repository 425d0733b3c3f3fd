"""`tutti demo`: the whole way once, on real input: service up, a report of the sample data, service down.

It uses the public HTTP API like any client, free ports, and a data directory of its own.
"""

from __future__ import annotations

from pathlib import Path

import orjson
from rich.console import Console
from rich.markdown import Markdown

from cluster.errors import InvalidInput, LaunchFailed, RunFailed
from cluster.settings import Settings
from serve_app.api_client import ApiClient, read_task_input
from serve_app.cli_output import watch_run
from serve_app.launch.ray_environment import free_ports
from serve_app.launch.up import Service, ending_in_order
from serve_app.report_pages import render_html, render_markdown

__all__ = ["run_demo"]

_SAMPLES = ("sales.json", "notes.txt", "photo.jpg")
_STOP_GRACE_S = 8.0


def run_demo(console: Console, out: Path, data_dir: Path) -> None:
    """Run the demo.

    Args:
        console: Where progress and report are shown.
        out: Folder for `report.json`, `.md` and `.html`; made if missing.
        data_dir: Data directory of the service.

    Raises:
        LaunchFailed: The service cannot be started.
        RunFailed: The report failed.
    """
    samples = _sample_files()
    http_port, grpc_port = free_ports(2)
    # Whatever the environment says about a real service, the demo is a local one.
    settings = Settings.from_environment({}, data_dir=data_dir, http_port=http_port, grpc_port=grpc_port)
    service = Service(settings, say=lambda line: console.print(line, markup=False, style="dim"))
    try:
        with ending_in_order(service, _STOP_GRACE_S, on_first_signal=_interrupt):
            with console.status("Starting Redis, Ray and Serve …"):
                service.start()
            console.print(service.ready_line, markup=False, highlight=False)
            report = _make_report(console, service.http_url, samples)
    except KeyboardInterrupt:
        raise LaunchFailed("interrupted") from None
    markdown = render_markdown(report)
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2) + b"\n")
    (out / "report.md").write_text(markdown, encoding="utf-8")
    (out / "report.html").write_text(render_html(report), encoding="utf-8")
    console.print(Markdown(markdown))
    console.print(
        f"\nwritten: {out / 'report.json'}, {out / 'report.md'}, {out / 'report.html'}", markup=False
    )


def _make_report(console: Console, url: str, samples: list[Path]) -> dict[str, object]:
    body = {
        "task_type": "report_generation",
        "execution_mode": "sequential",
        "inputs": [read_task_input(path, path.stem) for path in samples],
        "metadata": {"report_title": "A look at the sample data"},
    }
    with ApiClient(url) as client:
        run_id = client.submit_task(body)
        watch_run(console, client.get_run(run_id), client.follow(run_id))
        task = client.get_task(run_id)
    if task["status"] != "completed":
        error = task.get("error") or {}
        raise RunFailed(f"the report failed: {error.get('message', task['status'])}", run_id=run_id)
    report = task["output"]["data"]
    if not isinstance(report, dict):
        raise RunFailed("the report is no object", run_id=run_id)
    return report


def _sample_files() -> list[Path]:
    folder = Path(__file__).resolve().parents[2] / "examples" / "data"
    files = [folder / name for name in _SAMPLES]
    for path in files:
        if not path.is_file():
            raise InvalidInput(f"the sample {path} is missing: run the demo from a checkout")
    return files


def _interrupt() -> None:
    raise KeyboardInterrupt
