"""The command line against a small HTTP service of the test's own: what it asks, shows, and how it fails."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from serve_app.cli import app
from serve_app.launch.ray_environment import free_ports

RUN = {
    "run_id": "r-1",
    "dialect": "runs",
    "plan_name": "tiny",
    "status": "succeeded",
    "priority": 50,
    "progress": 1.0,
    "created_at": "2026-01-01T00:00:00.000000Z",
    "started_at": None,
    "ended_at": None,
    "error": None,
    "metadata": {},
    "steps": [
        {
            "name": "first",
            "capability": "echo",
            "item": -1,
            "status": "succeeded",
            "attempt": 1,
            "agent_id": "agent-basic-1",
            "progress": 1.0,
            "error": None,
        }
    ],
    "output": {"answer": [1, 2]},
    "cancel_reason": "",
}


def event(seq: int, kind: str, status: str = "running", progress: float = 0.0, **more: Any) -> dict[str, Any]:
    plain = {"step": "", "item": -1, "message": "", "error": None, "step_progress": 0.0, "agent_id": ""}
    return {"seq": seq, "type": kind, "status": status, "progress": progress, **plain, **more}


EVENTS = [
    event(1, "run.started"),
    event(2, "step.started", step="first"),
    event(3, "step.progress", step="first", message="half way", progress=0.5, step_progress=0.5),
    event(4, "run.succeeded", "succeeded", 1.0),
]


class SmallService:
    """Answers like the service; keeps what it was asked.

    Attributes:
        asked: (method, path, headers, body) of each request.
        cut_after: Events after which the first stream breaks off; 0 for never.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], Any]] = []
        self.run: dict[str, Any] = dict(RUN)
        self.events = list(EVENTS)
        self.cut_after = 0
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def _handler(service: Any) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - the handler's self is another
        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                service.asked.append((self.command, self.path, dict(self.headers.items()), body))
                if self.path.endswith("/events"):
                    self.stream(int(self.headers.get("Last-Event-ID") or 0))
                    return
                status, answer = service.respond(self.command, self.path, body)
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = answer  # noqa: N815 - names given by http.server

            def stream(self, after: int) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                waiting = [each for each in service.events if each["seq"] > after]
                cut, service.cut_after = service.cut_after, 0
                for each in waiting[: cut or None]:
                    self.wfile.write(f": noise\n\nid: {each['seq']}\ndata: {json.dumps(each)}\n\n".encode())
                self.close_connection = True

            def log_message(self, *_: Any) -> None:
                pass

        return Handler

    def respond(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if path == "/api/v1/tasks":
            return 200, {"task_id": (body or {}).get("task_id", "t-1"), "status": "queued"}
        if path == "/api/v1/runs" and method == "POST":
            return 200, {"run_id": body.get("run_id", "r-1")}
        if path.startswith("/api/v1/runs?"):
            return 200, {"runs": [self.run], "next_cursor": None}
        if path == "/api/v1/runs/r-1":
            return 200, self.run
        if path == "/api/v1/runs/r-1/cancel":
            return 200, {**self.run, "status": "cancelled"}
        if path == "/api/v1/runs/shut":
            return 401, {"detail": "a credential is needed"}
        if path == "/api/v1/runs/away":
            return 404, "Path '/api/v1/runs/away' not found."
        return 404, {"error": {"code": "NOT_FOUND", "message": "no such run"}, "detail": "no such run"}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallService]:
    small = SmallService()
    thread = threading.Thread(target=small.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("TUTTI_URL", small.url)
    yield small
    small.server.shutdown()
    small.server.server_close()
    thread.join()


def tutti(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_submit_sends_a_plan_and_prints_its_id(service: SmallService, tmp_path: Path) -> None:
    plan = {"name": "tiny", "steps": [{"name": "first", "capability": "echo"}]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    result = tutti(
        "submit", str(tmp_path / "plan.json"), "--input", '{"x": 1}', "--id", "r-1", "--priority", "70"
    )
    assert (result.exit_code, result.stdout) == (0, "r-1\n")
    method, path, _, body = service.asked[0]
    assert (method, path) == ("POST", "/api/v1/runs")
    assert body == {"plan": plan, "inputs": {"x": 1}, "run_id": "r-1", "priority": 70}


def test_submit_reads_files_as_the_inputs_of_a_task(service: SmallService, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[{"a": 1}]')
    (tmp_path / "notes.txt").write_text("größer", encoding="utf-8")
    (tmp_path / "old.txt").write_bytes("größer".encode("latin-1"))
    (tmp_path / "photo.png").write_bytes(b"\x89PNG")
    files = [str(tmp_path / name) for name in ("rows.json", "notes.txt", "old.txt", "photo.png")]
    given = [part for path in files for part in ("--input", path)]
    result = tutti(
        "submit", "--type", "report_generation", *given, "--metadata", "report_title=Mine", "--timeout", "2.5"
    )
    assert (result.exit_code, result.stdout) == (0, "t-1\n")
    body = service.asked[0][3]
    assert body["task_type"] == "report_generation"
    assert body["timeout_ms"] == 2500
    assert body["metadata"] == {"report_title": "Mine"}
    assert [(each["type"], each["data"]) for each in body["inputs"]] == [
        ("json", [{"a": 1}]),
        ("text", "größer"),
        ("binary", "Z3L232Vy"),
        ("image", "iVBORw=="),
    ]


def test_watch_takes_a_broken_stream_up_after_the_last_event(service: SmallService) -> None:
    service.cut_after = 2
    service.run = {**RUN, "status": "running"}
    follow = [event(4, "run.succeeded", "succeeded", 1.0)]
    service.events = EVENTS[:3] + follow

    def respond(method: str, path: str, body: Any) -> tuple[int, Any]:
        is_over = sum(asked[1].endswith("/events") for asked in service.asked) > 1
        return 200, {**RUN, "status": "succeeded" if is_over else "running"}

    service.respond = respond  # type: ignore[method-assign]
    result = tutti("watch", "r-1")
    assert result.exit_code == 0, result.output
    streams = [headers for _, path, headers, _ in service.asked if path.endswith("/events")]
    assert [headers["Last-Event-ID"] for headers in streams] == ["0", "2"]
    assert result.stdout.count("step.started") == 1
    assert "half way" in result.stdout
    assert result.stdout.endswith("succeeded\n")


def test_watch_of_a_failed_run_exits_1_with_its_error(service: SmallService) -> None:
    error = {"code": "TIMEOUT", "message": "took too long"}
    service.run = {**RUN, "status": "failed", "error": error}
    service.events = [event(1, "run.failed", "failed", 1.0, error=error)]
    result = tutti("watch", "r-1")
    assert result.exit_code == 1
    assert result.stderr == "error: TIMEOUT: took too long\n"


def test_get_shows_steps_and_output_and_json_for_programs(service: SmallService) -> None:
    shown = tutti("get", "r-1").stdout
    assert "agent-basic-1" in shown
    assert '"answer"' in shown
    assert json.loads(tutti("get", "r-1", "--json").stdout) == RUN


def test_ls_filters_by_status_and_shows_a_table(service: SmallService) -> None:
    result = tutti("ls", "--status", "failed", "--status", "running", "--limit", "5")
    assert result.exit_code == 0
    assert "r-1" in result.stdout
    assert service.asked[0][1] == "/api/v1/runs?limit=5&status=failed&status=running"


def test_cancel_says_the_reason_and_prints_the_status(service: SmallService) -> None:
    result = tutti("cancel", "r-1", "--reason", "not needed")
    assert (result.exit_code, result.stdout) == (0, "cancelled\n")
    assert service.asked[0][3] == {"reason": "not needed"}


def test_credentials_are_sent_in_their_headers(service: SmallService) -> None:
    tutti("get", "r-1", "--token", "abc", "--api-key", "key")
    headers = service.asked[0][2]
    assert (headers["Authorization"], headers["X-API-Key"]) == ("Bearer abc", "key")


def test_unreachable_service_is_one_line_and_exit_1() -> None:
    (port,) = free_ports(1)
    result = tutti("ls", "--url", f"http://127.0.0.1:{port}")
    assert result.exit_code == 1
    assert (
        result.stderr == f"error: no service answers at http://127.0.0.1:{port}; start one with `tutti up`\n"
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("get", "unknown"), "error: no such run"),
        (("get", "shut"), "error: a credential is needed"),
        (("watch", "unknown"), "error: no such run"),
        (("get", "away"), "error: the service is not there at the moment (HTTP 404: Not Found)"),
        (("submit",), "error: give either a PLAN.json or --type"),
        (
            ("submit", "/nowhere/plan.json"),
            "error: /nowhere/plan.json cannot be read: No such file or directory",
        ),
        (
            ("submit", "--type", "x", "--input", "/nowhere"),
            "error: /nowhere cannot be read: No such file or directory",
        ),
        (("submit", "--type", "x", "--metadata", "x"), "error: --metadata must be name=value"),
        (
            ("ls", "--url", "localhost"),
            "error: localhost is not a URL: it must begin with http:// or https://",
        ),
    ],
)
def test_every_failure_is_one_line_and_exit_1(
    service: SmallService, arguments: tuple[str, ...], line: str
) -> None:
    result = tutti(*arguments)
    assert result.exit_code == 1
    assert result.stderr == f"{line}\n"


def test_settings_are_listed_with_secrets_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIENT_TOKEN", "geheim")
    monkeypatch.setenv("TUTTI_HTTP_PORT", "8123")
    lines = json.loads(tutti("settings", "--json").stdout)
    by_name = {line["name"]: line for line in lines}
    assert by_name["client_token"]["value"] == "***"
    assert (by_name["http_port"]["value"], by_name["http_port"]["default"]) == ("8123", "8000")
    table = tutti("settings").stdout
    assert "geheim" not in table
    assert "8123" in table


def test_up_refuses_an_unusable_setting_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUTTI_DURABILITY", "maybe")
    result = tutti("up")
    assert result.exit_code == 1
    assert result.stderr == "error: TUTTI_DURABILITY: 'maybe' is not one of strict, everysec\n"


def test_up_on_a_port_in_use_names_the_port(service: SmallService, tmp_path: Path) -> None:
    port = service.server.server_address[1]
    result = tutti("up", "--http-port", str(port), "--data-dir", str(tmp_path))
    assert result.exit_code == 1
    assert f"error: port {port} on 127.0.0.1 is in use" in result.stderr
    assert not (tmp_path / "runtime.json").exists()
