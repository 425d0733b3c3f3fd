"""The pages that describe the API need nothing but this service."""

import re

import httpx
import pytest

from cluster.settings import Settings
from serve_app.http_app import build_app
from serve_app.service import RunService


@pytest.fixture
async def client(tmp_path):
    settings = Settings(redis_url="unix:///nowhere/redis.sock", data_dir=tmp_path)
    app = build_app(RunService.connect(settings), settings)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        yield client


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_everything_that_a_page_loads_is_served_here(client, path):
    page = await client.get(path)
    assert page.status_code == 200
    loaded = re.findall(r'(?:src|href|spec-url)="([^"]+)"', page.text)
    assert len(loaded) >= 2
    for link in loaded:
        assert "//" not in link
        answer = await client.get(httpx.URL("http://localhost/").join(link))
        assert answer.status_code == 200, link
        assert len(answer.content) > 100, link


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_page_has_no_script_of_its_own_and_forbids_those_of_others(client, path):
    page = await client.get(path)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert not re.search(r"<script(?![^>]*\bsrc=)", page.text)


async def test_only_the_assets_of_the_pages_are_served(client):
    for name in ("nothing.js", "..%2fcore.py", "consts.py"):
        assert (await client.get(f"/docs/assets/{name}")).status_code == 404


async def test_documented_place_of_the_page_leads_to_it(client):
    answer = await client.get("/_public/docs", follow_redirects=True)
    assert (answer.status_code, answer.url.path) == (200, "/docs")
