"""What the edge counts of requests: each once, by pattern, and shown by any replica."""

import httpx
import pytest

from cluster.settings import Settings
from serve_app.http_app import build_app
from serve_app.metrics import ServiceFigures, render_metrics
from serve_app.request_figures import RequestFigures, measured, measured_stream
from serve_app.service import RunService


class _Context:
    def __init__(self, code):
        self._code = code

    def code(self):
        return self._code


@pytest.fixture
async def client(tmp_path):
    settings = Settings(redis_url="unix:///nowhere/redis.sock", data_dir=tmp_path)
    app = build_app(RunService.connect(settings), settings)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        yield client


async def test_requests_are_counted_by_pattern_and_status_also_without_the_store(client):
    for path in ("/api/v1/runs/a", "/api/v1/runs/b", "/nowhere", "/elsewhere", "/docs"):
        await client.get(path)
    await client.post("/api/v1/tasks", content=b"{")
    lines = [
        line for line in (await client.get("/metrics")).text.splitlines() if "http_requests_total{" in line
    ]
    text = "\n".join(lines)
    assert 'route="/api/v1/runs/{run_id}",status="503"} 2.0' in text
    assert 'route="other",status="404"} 2.0' in text
    assert 'route="/api/v1/tasks",status="400"} 1.0' in text
    assert len(lines) == 4


async def test_time_until_the_answer_is_a_histogram(client):
    await client.get("/docs")
    text = (await client.get("/metrics")).text
    assert "# TYPE tutti_http_request_seconds histogram" in text
    assert 'route="/docs"' in text
    # The request for the figures itself is open.
    assert any(
        line.startswith("tutti_http_requests_open{") and line.endswith(" 1.0") for line in text.splitlines()
    )


async def test_calls_over_grpc_are_counted_by_their_code_and_streams_when_they_end():
    class Servicer:
        figures = RequestFigures()

        @measured
        async def Ask(self, request, grpc_context):  # noqa: N802 - as on the wire
            return request

        @measured_stream
        async def Follow(self, request, grpc_context):  # noqa: N802 - as on the wire
            yield request
            yield request

    class Code:
        name = "NOT_FOUND"

    servicer = Servicer()
    assert await servicer.Ask(1, _Context(None)) == 1
    await servicer.Ask(1, _Context(Code))
    assert [message async for message in servicer.Follow(2, _Context(None))] == [2, 2]
    text = render_metrics(ServiceFigures(totals=None, ingress=[servicer.figures.snapshot()])).decode()
    for method, code in (("Ask", "OK"), ("Ask", "NOT_FOUND"), ("Follow", "OK")):
        assert f'tutti_grpc_requests_total{{code="{code}",method="{method}",process="' in text


def test_counts_of_two_replicas_stand_side_by_side():
    one, two = RequestFigures(), RequestFigures()
    one.count_call("Ask", "OK", 0.001)
    two.count_call("Ask", "OK", 0.001)
    told = [one.snapshot(), two.snapshot()]
    text = render_metrics(ServiceFigures(totals=None, ingress=told)).decode()
    assert text.count("# TYPE tutti_grpc_requests_total counter") == 1
    assert text.count("tutti_grpc_requests_total{") == 2
