"""Sockets of workers: told at once what to stop, and replaced by newer ones."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager

import pytest

from serve_app.http_app import build_app
from tests.integration.serve_app.test_workers_http import Api, settings  # noqa: F401 - a fixture


class Socket:
    """The other end of a connection, spoken to as a server would."""

    def __init__(self) -> None:
        self.up: asyncio.Queue[dict[str, object]] = asyncio.Queue()
        self.down: asyncio.Queue[dict[str, object]] = asyncio.Queue()

    async def next(self) -> dict[str, object]:
        return await asyncio.wait_for(self.down.get(), 5)

    async def send(self, body: object) -> None:
        await self.up.put({"type": "websocket.receive", "text": json.dumps(body)})


@pytest.fixture
def app(service, settings):  # noqa: F811
    return build_app(service, settings)


@pytest.fixture
async def api(client, owner):
    return Api(client)


@pytest.fixture
def open_socket(app):
    @asynccontextmanager
    async def open_one(path="/_worker/ws/w1", **headers):
        socket = Socket()
        named = {"host": "localhost", "x-worker-token": "secret", **headers}
        scope = {
            "type": "websocket",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "ws",
            "subprotocols": [],
            "client": ("127.0.0.1", 1),
            "server": ("localhost", 80),
            "headers": [(name.encode(), value.encode()) for name, value in named.items() if value],
        }
        await socket.up.put({"type": "websocket.connect"})
        serving = asyncio.create_task(app(scope, socket.up.get, socket.down.put))
        yield socket
        await socket.up.put({"type": "websocket.disconnect", "code": 1000})
        await asyncio.wait([serving], timeout=5)
        assert serving.done()

    return open_one


@pytest.mark.parametrize("path", ["/_worker/ws/w1", "/_worker/ws"])
async def test_worker_that_listens_is_told_at_once_what_to_stop(api, open_socket, path):
    await api.register()
    run_id = await api.submit("echo")
    task = await api.task()
    async with open_socket(path) as socket:
        assert (await socket.next())["type"] == "websocket.accept"
        await api.client.post(f"/api/v1/runs/{run_id}/cancel")
        told = json.loads((await socket.next())["text"])
        assert told == {
            "command": "cancel_task", "type": "cancel_task", "task_id": task["task_id"], "job_id": run_id
        }  # fmt: skip


@pytest.mark.parametrize("path", ["/_worker/ws/w1", "/_worker/ws"])
async def test_progress_comes_over_the_socket_and_nonsense_does_no_harm(api, open_socket, path):
    await api.register()
    run_id = await api.submit("echo")
    task = await api.task()
    async with open_socket(path) as socket:
        await socket.next()
        for odd in (
            "text",
            5,
            {"event": "progress_update"},
            {"event": ["x"]},
            {"type": "progress_update", "task_id": 1},
        ):
            await socket.send(odd)
        await socket.up.put({"type": "websocket.receive", "text": "{"})
        await socket.send(
            {"event": "progress_update", "task_id": task["task_id"], "progress": 0.25, "message": ""}
        )
        await api.until(run_id, progress=0.25)


async def test_newer_connection_closes_the_older(open_socket):
    async with open_socket() as older:
        await older.next()
        async with open_socket() as newer:
            await newer.next()
            closed = await older.next()
            assert (closed["type"], closed["code"]) == ("websocket.close", 1008)


async def test_socket_of_another_worker_is_refused(open_socket):
    async with open_socket("/_worker/ws/w1", **{"x-worker-token": "own-secret"}) as socket:
        assert (await socket.next())["type"] == "websocket.close"
    async with open_socket("/_worker/ws", **{"x-worker-token": "own-secret"}) as socket:
        assert (await socket.next())["type"] == "websocket.accept"


@pytest.mark.parametrize("token", ["", "wrong"])
async def test_socket_without_a_token_is_not_accepted(open_socket, token):
    async with open_socket(**{"x-worker-token": token}) as socket:
        assert (await socket.next())["type"] != "websocket.accept"
