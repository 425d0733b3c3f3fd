import base64
import hashlib
import time

import jwt
import pytest

from cluster.errors import Forbidden, InvalidInput, InvalidSetting, Unauthenticated
from cluster.settings import Settings
from serve_app.auth import Authenticator, Principal

SECRET = "s" * 32


def _required(**values):
    return Authenticator(
        Settings(
            auth="required",
            jwt_secret=SECRET,
            api_keys={"OPS": "key-of-ops:admin", "SHOP": "key-of-shop:user:shop"},
            client_token="client-token",
            global_worker_token="worker-token",
            **values,
        )
    )


def _token(algorithm="HS256", secret=SECRET, **claims):
    given = {"sub": "ann", "role": "agent", "exp": time.time() + 60, **claims}
    return jwt.encode({name: value for name, value in given.items() if value is not None}, secret, algorithm)


def _odd(name, literal):
    """A token that is signed with our secret and whose claim is this JSON."""
    claims = {"sub": '"ann"', "exp": str(time.time() + 60), name: literal}
    payload = "{" + ", ".join(f'"{key}": {value}' for key, value in claims.items()) + "}"
    return jwt.PyJWS().encode(payload.encode(), SECRET, "HS256")


def _bearer(token):
    return {"authorization": f"Bearer {token}"}


def test_missing_credential_is_an_admin_in_open_mode_and_refused_otherwise():
    anonymous = Principal("anonymous", "default", "admin", is_operator=True, is_anonymous=True)
    assert Authenticator(Settings()).authenticate({}) == anonymous
    with pytest.raises(Unauthenticated, match="missing"):
        _required().authenticate({})
    with pytest.raises(Unauthenticated, match="missing"):
        _required().authenticate({"x-tenant-id": "shop"})


def test_wrong_credential_is_refused_even_in_open_mode():
    for name in ("authorization", "x-api-key", "x-client-token", "x-worker-token"):
        with pytest.raises(Unauthenticated):
            Authenticator(Settings()).authenticate({name: "Bearer nonsense"})


def test_one_wrong_credential_beside_a_right_one_is_refused():
    with pytest.raises(Unauthenticated):
        _required().authenticate({"x-api-key": "key-of-ops", "x-client-token": "wrong"})


def test_api_key_gives_its_name_role_and_tenant():
    assert _required().authenticate({"x-api-key": "key-of-shop"}) == Principal("shop", "shop", "user")
    assert _required().authenticate({"x-api-key": "key-of-ops"}).role == "admin"


def test_only_an_admin_of_no_tenant_is_an_operator():
    keys = {"ALL": "all:admin", "ONE": "one:admin:shop", "AGENT": "agent:agent"}
    authenticate = Authenticator(Settings(auth="required", api_keys=keys)).authenticate
    assert authenticate({"x-api-key": "all"}).is_operator
    assert authenticate({"x-api-key": "all", "x-tenant-id": "shop"}).is_operator
    assert not authenticate({"x-api-key": "one"}).is_operator
    assert not authenticate({"x-api-key": "agent"}).is_operator


def test_client_and_worker_tokens_give_their_roles():
    assert _required().authenticate({"x-client-token": "client-token"}).role == "user"
    worker = _required().authenticate({"x-worker-token": "worker-token"})
    assert (worker.role, worker.scopes) == ("worker", {"worker"})
    assert not worker.has_role("user")


def test_highest_role_counts_where_several_credentials_are_right():
    both = {"x-worker-token": "worker-token", "x-api-key": "key-of-ops"}
    assert _required().authenticate(both).subject == "ops"


def test_credentials_of_two_tenants_are_refused_together():
    with pytest.raises(Forbidden, match="different tenants"):
        _required().authenticate({"x-api-key": "key-of-shop"} | _bearer(_token(tenant="bank")))
    with pytest.raises(Forbidden, match="different tenants"):
        _required().authenticate({"x-api-key": "key-of-shop", "x-client-token": "client-token"})


def test_operator_beside_a_credential_of_a_tenant_works_in_that_tenant():
    both = {"x-api-key": "key-of-ops"} | _bearer(_token(tenant="shop"))
    principal = _required().authenticate(both)
    assert (principal.subject, principal.tenant, principal.role) == ("ops", "shop", "admin")
    with pytest.raises(Forbidden):
        _required().authenticate(both | {"x-tenant-id": "bank"})


def test_token_gives_subject_role_tenant_and_scopes():
    token = _token(tenant="shop", scope="jobs read")
    assert _required().authenticate(_bearer(token)) == Principal(
        "ann", "shop", "agent", frozenset({"jobs", "read"})
    )


@pytest.mark.parametrize(
    "token",
    [
        _token(exp=time.time() - 60),
        _token(exp=None),
        _token(sub=None),
        _token(role="root"),
        _token(role=["admin"]),
        _token(role={"admin": 1}),
        _token(role=3),
        _token(tenant="a b"),
        _token(tenant=["shop"]),
        _token(scope=["jobs"]),
        _token(exp="tomorrow"),
        _odd("exp", "[]"),
        _odd("exp", "1e400"),
        _odd("nbf", "{}"),
        _odd("iat", "[]"),
        _odd("sub", "{}"),
        f"{base64.urlsafe_b64encode(b'[' * 10_000).decode().rstrip('=')}.e30.e30",
        _token(secret="t" * 32),
        _token(algorithm="HS512", secret="s" * 64),
        jwt.encode({"sub": "ann", "exp": time.time() + 60}, "", "none"),
        "",
        "a.b.c",
    ],
    ids=[
        "expired",
        "endless",
        "nobody",
        "role",
        "role that is a list",
        "role that is an object",
        "role that is a number",
        "tenant",
        "tenant that is a list",
        "scope that is a list",
        "expiry that is a word",
        "expiry that is a list",
        "expiry that is infinite",
        "begin that is an object",
        "issue that is a list",
        "subject that is an object",
        "header nested too deep",
        "foreign",
        "HS512",
        "none",
        "empty",
        "garbage",
    ],
)
def test_token_that_is_not_ours_is_refused(token):
    with pytest.raises(Unauthenticated):
        _required().authenticate(_bearer(token))


def test_only_an_admin_without_a_tenant_chooses_one():
    authenticator = _required()
    assert authenticator.authenticate({"x-api-key": "key-of-ops", "x-tenant-id": "shop"}).tenant == "shop"
    assert Authenticator(Settings()).authenticate({"x-tenant-id": "shop"}).tenant == "shop"
    assert authenticator.authenticate({"x-api-key": "key-of-shop", "x-tenant-id": "shop"}).tenant == "shop"
    with pytest.raises(Forbidden):
        authenticator.authenticate({"x-api-key": "key-of-shop", "x-tenant-id": "bank"})
    with pytest.raises(Forbidden):
        authenticator.authenticate(_bearer(_token()) | {"x-tenant-id": "bank"})


@pytest.mark.parametrize("tenant", ["", "a b", "a" * 65, "a\n", "ä"])
def test_malformed_tenant_is_refused(tenant):
    with pytest.raises(InvalidInput):
        Authenticator(Settings()).authenticate({"x-tenant-id": tenant})


def test_clients_file_adds_tokens_and_their_digests(tmp_path):
    path = tmp_path / "clients.yaml"
    digest = hashlib.sha256(b"second").hexdigest()
    path.write_text(
        f"- {{name: one, token: first}}\n- {{name: two, token_sha256: {digest}, role: agent, tenant: shop}}\n"
    )
    authenticator = _required(clients_file=path)
    assert authenticator.authenticate({"x-client-token": "first"}) == Principal("one", "default", "user")
    assert authenticator.authenticate({"x-client-token": "second"}) == Principal("two", "shop", "agent")


@pytest.mark.parametrize(
    "text", ["a: b", "- {token: x}", "- {name: x}", "- {name: x, token: y, role: z}", "- ["]
)
def test_unusable_clients_file_is_refused_at_start(tmp_path, text):
    path = tmp_path / "clients.yaml"
    path.write_text(text)
    with pytest.raises(InvalidSetting, match="TUTTI_CLIENTS_FILE"):
        _required(clients_file=path)


def test_unknown_role_of_an_api_key_is_refused_at_start():
    with pytest.raises(InvalidSetting, match="ORCHESTRATOR_API_KEY_X"):
        Authenticator(Settings(api_keys={"X": "key:root"}))
