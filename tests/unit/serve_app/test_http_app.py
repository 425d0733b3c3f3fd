import httpx
import pytest
from fastapi import APIRouter, FastAPI

from cluster.lifecycle.run_status import RunStatus
from cluster.lifecycle.step_status import StepStatus
from cluster.settings import Settings
from serve_app.http_app import DIALECTS, build_app, check_paths
from serve_app.service import RunService


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_dialect_has_a_word_for_every_status(dialect):
    assert set(dialect.run_words) == set(RunStatus)
    assert set(dialect.step_words) == set(StepStatus)
    assert all(dialect.run_words.values())
    assert all(dialect.step_words.values())


def test_two_routes_for_one_path_are_refused_at_start():
    app, router = FastAPI(), APIRouter()
    app.get("/a/{x}")(lambda x: x)
    router.get("/a/{y}")(lambda y: y)
    app.include_router(router)
    with pytest.raises(ValueError, match="clashes"):
        check_paths(app)


async def test_description_names_the_type_of_every_body_and_answer(tmp_path):
    settings = Settings(redis_url="unix:///nowhere/redis.sock", data_dir=tmp_path)
    app = build_app(RunService.connect(settings), settings)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        document = (await client.get("/openapi.json")).json()
        assert (await client.get("/docs")).status_code == 200
        assert (await client.get("/redoc")).status_code == 200
    schemas = document["components"]["schemas"]
    named = []

    def collect(node):
        if isinstance(node, dict):
            if "$ref" in node:
                named.append(node["$ref"].removeprefix("#/components/schemas/"))
            for child in node.values():
                collect(child)
        elif isinstance(node, list):
            for child in node:
                collect(child)

    collect(document)
    assert set(named) <= set(schemas)
    post = document["paths"]["/api/v1/tasks"]["post"]
    assert post["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/TaskBody")
    assert set(schemas["TaskBody"]["required"]) == {"task_type"}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], (method, path)
            answers = operation["responses"]
            assert "content" in (answers.get("200") or answers["202"]), (method, path)
