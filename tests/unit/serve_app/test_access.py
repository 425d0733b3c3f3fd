"""Every route has one rule; strangers are refused before any route is asked."""

import dataclasses

import httpx
import psutil
import pytest

from cluster.settings import Settings
from serve_app.access import LocalPeers, rule_of
from serve_app.http_app import api_routes, build_app
from serve_app.service import RunService

PUBLIC = {
    "/_public/status",
    "/_public/docs",
    "/_public/webhooks/approval/{job_id}",
    "/health",
    "/metrics",
    "/_public/metrics",
    "/docs",
    "/redoc",
    "/docs/assets/{name}",
}
KEYS = {"A": "admin-key:admin", "U": "user-key:user"}
NOWHERE = "unix:///nowhere/redis.sock"


@pytest.fixture
def settings(tmp_path):
    return Settings(redis_url=NOWHERE, data_dir=tmp_path, max_body_bytes=2048)


def _client(settings, peer="127.0.0.1", **options):
    app = build_app(RunService.connect(settings), settings)
    transport = httpx.ASGITransport(app, client=(peer, 1))
    return httpx.AsyncClient(transport=transport, **{"base_url": "http://localhost", **options})


def _rules(route):
    pending, found = [route.dependant], []
    while pending:
        node = pending.pop()
        pending += node.dependencies
        found.append(rule_of(node.call))
    return [rule for rule in found if rule is not None]


def test_every_route_declares_exactly_one_rule_and_only_operations_and_descriptions_are_public(settings):
    routes = api_routes(build_app(RunService.connect(settings), settings).app.routes)
    assert len(routes) > 10
    for route in routes:
        (rule,) = _rules(route)
        assert (rule.role is None) == (route.path in PUBLIC), route.path


@pytest.mark.parametrize("peer", ["192.0.2.7", "2001:db8::1", "::ffff:192.0.2.7", "testclient"])
@pytest.mark.parametrize("path", ["/health", "/docs", "/openapi.json", "/api/v1/runs", "/nowhere"])
async def test_open_mode_refuses_every_peer_that_is_not_this_machine(settings, peer, path):
    async with _client(settings, peer) as client:
        response = await client.get(path)
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "FORBIDDEN"


def test_own_addresses_and_loopback_are_this_machine():
    peers = LocalPeers()
    own = [each.address for all_ in psutil.net_if_addrs().values() for each in all_ if each.family == 2]
    assert all(peers.has(address) for address in [*own, "127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
    assert peers.has_grpc_peer("ipv4:127.0.0.1:5000")
    assert peers.has_grpc_peer("ipv6:%5B::1%5D:5000")
    assert peers.has_grpc_peer("unix:")
    assert not peers.has_grpc_peer("ipv4:192.0.2.7:5000")
    assert not peers.has_grpc_peer("")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "127.0.0.1:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Origin": "http://localhost:3000"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"X-Forwarded-For": "127.0.0.1"}, 200),
        ({"X-Forwarded-For": "192.0.2.7"}, 403),
        ({"X-Forwarded-For": "192.0.2.7, 127.0.0.1"}, 403),
        ({"X-Forwarded-For": "unknown"}, 403),
    ],
)
async def test_open_mode_refuses_web_pages_and_proxied_clients_of_elsewhere(settings, headers, status):
    async with _client(settings) as client:
        assert (await client.get("/openapi.json", headers=headers)).status_code == status


async def test_required_mode_serves_any_peer_that_has_a_credential(settings):
    required = dataclasses.replace(settings, auth="required", api_keys=KEYS)
    async with _client(required, "192.0.2.7", base_url="http://tutti.example") as client:
        missing = await client.get("/api/v1/runs")
        assert (missing.status_code, missing.headers["www-authenticate"]) == (401, "Bearer")
        assert missing.json()["error"]["code"] == "UNAUTHENTICATED"
        assert (await client.get("/api/v1/runs", headers={"X-API-Key": "wrong"})).status_code == 401
        # 503: let in, and found that the store is away.
        assert (await client.get("/api/v1/runs", headers={"X-API-Key": "user-key"})).status_code == 503
        assert (await client.get("/health")).status_code == 503


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("X-API-Key", "user-key"), ("X-API-Key", "admin-key")], 401),
        ([("X-API-Key", "user-key"), ("x-api-key", "user-key")], 401),
        ([("Authorization", "Bearer a"), ("Authorization", "Bearer b")], 401),
        ([("X-API-Key", "admin-key"), ("X-Tenant-ID", "a"), ("X-Tenant-ID", "b")], 400),
    ],
)
@pytest.mark.parametrize("auth", ["open", "required"])
async def test_credential_that_is_given_twice_is_refused_since_nobody_knows_which_is_meant(
    settings, headers, status, auth
):
    guarded = dataclasses.replace(settings, auth=auth, api_keys=KEYS)
    async with _client(guarded) as client:
        response = await client.get("/api/v1/runs", headers=headers)
    assert response.status_code == status
    assert "more than once" in response.json()["error"]["message"]


async def test_worker_may_not_use_a_users_route(settings):
    required = dataclasses.replace(settings, auth="required", global_worker_token="token")
    async with _client(required) as client:
        response = await client.get("/api/v1/runs", headers={"X-Worker-Token": "token"})
    assert response.status_code == 403


async def test_rate_limit_tells_what_is_left_and_when_to_come_back(settings):
    required = dataclasses.replace(settings, auth="required", api_keys=KEYS, rate_limit=2)
    async with _client(required, headers={"X-API-Key": "user-key"}) as client:
        # Refused for its limit: an answer that needs no store, within the same second.
        answers = [await client.get("/api/v1/runs?limit=x") for _ in range(3)]
        other = await client.get("/api/v1/runs?limit=x", headers={"X-API-Key": "admin-key"})
    assert [answer.status_code for answer in answers] == [422, 422, 429]
    assert [answer.headers["x-ratelimit-remaining"] for answer in answers] == ["1", "0", "0"]
    assert answers[2].headers["x-ratelimit-limit"] == "2"
    assert answers[2].headers.get_list("x-ratelimit-reset") != []
    assert int(answers[2].headers["retry-after"]) >= 1
    assert other.status_code == 422


@pytest.mark.parametrize("length", ["2049", "99999999999999999999", "x", "-1"])
async def test_body_that_says_it_is_too_long_is_refused_unread(settings, length):
    async with _client(settings) as client:
        response = await client.post("/api/v1/tasks", content=b"{}", headers={"Content-Length": length})
    assert response.status_code == 413


async def test_unknown_path_and_method_have_the_common_shape(settings):
    async with _client(settings) as client:
        unknown, wrong = await client.get("/nowhere"), await client.put("/health")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "NOT_FOUND")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "METHOD_NOT_ALLOWED")
    assert wrong.headers["allow"] == "GET"


async def test_failed_credentials_are_counted_by_the_address_that_trusted_proxies_tell(settings):
    required = dataclasses.replace(
        settings, auth="required", api_keys=KEYS, rate_limit=2, trusted_proxies=("10.0.0.0/8",)
    )

    async with _client(required) as client:

        async def knock(forwarded, key="wrong"):
            headers = {"X-API-Key": key, "X-Forwarded-For": forwarded}
            return (await client.get("/api/v1/runs", headers=headers)).status_code

        # What stands left of the last stranger is the client's own invention.
        assert [await knock(f"203.0.113.{n}, 192.0.2.1, 10.1.2.3") for n in range(3)] == [401, 401, 429]
        assert await knock("192.0.2.2, 10.1.2.3") == 401
        # Who has a credential is counted by it, wherever others fail.
        assert await knock("192.0.2.1", key="user-key") == 503


async def test_failed_credentials_share_one_count_where_no_proxy_is_trusted(settings):
    required = dataclasses.replace(settings, auth="required", api_keys=KEYS, rate_limit=2)
    async with _client(required) as client:
        headers = [{"X-API-Key": "wrong", "X-Forwarded-For": f"192.0.2.{n}"} for n in range(3)]
        answers = [(await client.get("/api/v1/runs", headers=each)).status_code for each in headers]
    assert answers == [401, 401, 429]
