"""Who calls: every style of credential ends as one Principal, for HTTP headers and gRPC metadata alike.

A missing credential is an admin in open mode and refused otherwise; a wrong one is always refused. Secrets
are compared by digest in constant time. This module refuses to know routes: `access` says what each of them
asks for.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jwt

from cluster.errors import Forbidden, InvalidInput, InvalidSetting, Unauthenticated
from cluster.model.run_id import DEFAULT_TENANT
from cluster.model.submission_rules import is_tenant

if TYPE_CHECKING:
    from cluster.settings import Settings

__all__ = [
    "CREDENTIAL_NAMES",
    "DEFAULT_TENANT",
    "NO_CREDENTIAL",
    "ROLES",
    "Authenticator",
    "Principal",
    "single_values",
]

ROLES: Mapping[str, int] = {"worker": 0, "user": 1, "agent": 2, "admin": 3}
"""Rank of each role: a higher one may do all that a lower one may. A worker only has its scope."""

CREDENTIAL_NAMES = ("authorization", "x-api-key", "x-client-token", "x-worker-token", "x-tenant-id")
"""Headers (or metadata keys) that `Authenticator.authenticate` looks at, in lower case."""

NO_CREDENTIAL = (
    "a credential is missing: use Authorization: Bearer, X-API-Key, X-Client-Token or X-Worker-Token"
)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a request comes from.

    Attributes:
        subject: Name for records and rate limits.
        tenant: Whose Runs it works on.
        role: One of ROLES.
        scopes: What it may do beyond its role.
        is_operator: Whether it is an admin of no tenant: what all tenants share is its to see and to change.
        is_anonymous: Whether it came without a credential, in open mode.
    """

    subject: str
    tenant: str
    role: str
    scopes: frozenset[str] = frozenset()
    is_operator: bool = False
    is_anonymous: bool = False

    def has_role(self, role: str) -> bool:
        """Whether its rank is at least that of `role`."""
        return ROLES[self.role] >= ROLES[role]


@dataclass(frozen=True, slots=True)
class _Grant:
    """What a credential stands for; tenant None means that its holder chooses one."""

    subject: str
    role: str
    tenant: str | None
    scopes: frozenset[str] = frozenset()


class _TokenTable:
    """Grants by secret. Only digests are kept, and looking one up touches all of them."""

    def __init__(self) -> None:
        self._entries: list[tuple[bytes, _Grant]] = []

    def add(self, digest: bytes, grant: _Grant) -> None:
        self._entries.append((digest, grant))

    def find(self, secret: str) -> _Grant:
        presented = _digest(secret)
        found = None
        for digest, grant in self._entries:
            if hmac.compare_digest(digest, presented):
                found = grant
        if found is None:
            raise Unauthenticated("the credential is not valid")
        return found


class Authenticator:
    """Turns credentials into Principals, as the settings say.

    Attributes:
        individual_workers: Ids of workers that have a token of their own.

    Raises:
        InvalidSetting: An API key's role or a line of the clients file cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self._is_open = settings.auth == "open"
        self._jwt_secret = settings.jwt_secret
        self._api_keys = _TokenTable()
        self._client_tokens = _TokenTable()
        self._worker_tokens = _TokenTable()
        for name, text in settings.api_keys.items():
            key, role, *tenant = text.split(":")
            grant = _grant(f"ORCHESTRATOR_API_KEY_{name}", name.lower(), role, tenant[0] if tenant else None)
            self._api_keys.add(_digest(key), grant)
        if settings.client_token:
            self._client_tokens.add(_digest(settings.client_token), _Grant("client", "user", DEFAULT_TENANT))
        self.individual_workers: frozenset[str] = frozenset()
        if settings.clients_file is not None:
            self.individual_workers = _read_clients(
                settings.clients_file, self._client_tokens, self._worker_tokens
            )
        if settings.global_worker_token:
            grant = _Grant("worker", "worker", DEFAULT_TENANT, frozenset({"worker"}))
            self._worker_tokens.add(_digest(settings.global_worker_token), grant)
        self._anonymous = Principal("anonymous", DEFAULT_TENANT, "admin", is_operator=True, is_anonymous=True)

    def authenticate(self, credentials: Mapping[str, str]) -> Principal:
        """Find out who calls.

        Args:
            credentials: Values by the names of CREDENTIAL_NAMES; others are ignored.

        Raises:
            Unauthenticated: A credential is missing, wrong or expired; each that was given must be right.
            Forbidden: Credentials belong to different tenants, or `x-tenant-id` names another than theirs.
            InvalidInput: `x-tenant-id` is malformed.
        """
        if not credentials:
            if self._is_open:
                return self._anonymous
            raise Unauthenticated(NO_CREDENTIAL)
        grants = []
        if header := credentials.get("authorization"):
            grants.append(self._bearer(header))
        for name, table in (
            ("x-api-key", self._api_keys),
            ("x-client-token", self._client_tokens),
            ("x-worker-token", self._worker_tokens),
        ):
            if secret := credentials.get(name):
                grants.append(table.find(secret))
        is_anonymous = not grants
        if is_anonymous:
            if not self._is_open:
                raise Unauthenticated(NO_CREDENTIAL)
            grants = [_Grant("anonymous", "admin", None)]
        grant = max(grants, key=lambda each: ROLES[each.role])
        return Principal(
            grant.subject,
            _tenant_of(grants, credentials.get("x-tenant-id")),
            grant.role,
            grant.scopes,
            is_operator=grant.role == "admin" and grant.tenant is None,
            is_anonymous=is_anonymous,
        )

    def _bearer(self, header: str) -> _Grant:
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer" or not self._jwt_secret:
            raise Unauthenticated("the credential is not valid")
        try:
            claims: dict[str, Any] = jwt.decode(
                token.strip(), self._jwt_secret, algorithms=["HS256"], options={"require": ["exp", "sub"]}
            )
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("the token has expired") from None
        except (jwt.InvalidTokenError, TypeError, ValueError, OverflowError, RecursionError):
            # The last four: claims of odd types (`exp` a list, infinite), a header nested too deep.
            raise Unauthenticated("the token is not valid") from None
        role, tenant = claims.get("role", "user"), claims.get("tenant")
        scopes = claims.get("scope", "")
        if not isinstance(role, str) or role not in ROLES or not isinstance(scopes, str):
            raise Unauthenticated("the token is not valid")
        if tenant is not None and not (isinstance(tenant, str) and is_tenant(tenant)):
            raise Unauthenticated("the token is not valid")
        return _Grant(str(claims["sub"]), role, _bound(role, tenant), frozenset(scopes.split()))


def single_values(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Take what `Authenticator.authenticate` looks at out of headers or metadata.

    Which of two was meant nobody can know, and a proxy in front may have looked at the other one.

    Args:
        pairs: Names of CREDENTIAL_NAMES, and values.

    Raises:
        Unauthenticated: A credential is given twice.
        InvalidInput: `x-tenant-id` is.
    """
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in found:
            message = f"{name} is given more than once"
            if name == "x-tenant-id":
                raise InvalidInput(message, field="X-Tenant-ID", malformed=True)
            raise Unauthenticated(message)
        found[name] = value
    return found


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _bound(role: str, tenant: str | None) -> str | None:
    """Only an admin may go without a tenant of its own and choose one."""
    return tenant if tenant is not None or role == "admin" else DEFAULT_TENANT


def _grant(where: str, subject: str, role: str, tenant: str | None) -> _Grant:
    if role not in ROLES:
        raise InvalidSetting(f"{where}: {role!r} is not one of {', '.join(ROLES)}")
    if tenant is not None and not is_tenant(tenant):
        raise InvalidSetting(f"{where}: {tenant!r} is not a tenant's name")
    return _Grant(subject, role, _bound(role, tenant))


def _tenant_of(grants: list[_Grant], asked: str | None) -> str:
    """Find the one tenant that all credentials agree on; one without a tenant agrees with any."""
    bound = {grant.tenant for grant in grants if grant.tenant is not None}
    if len(bound) > 1:
        raise Forbidden("the credentials belong to different tenants")
    own = next(iter(bound), None)
    if asked is None:
        return own or DEFAULT_TENANT
    if not is_tenant(asked):
        raise InvalidInput("X-Tenant-ID is malformed", field="X-Tenant-ID", malformed=True)
    if own is not None and own != asked:
        raise Forbidden("the credential belongs to another tenant")
    return asked


def _without_content(error: Exception) -> str:
    """Say why the file cannot be read, without what stands in it: YAML's own texts quote it."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    line = getattr(getattr(error, "problem_mark", None), "line", None)
    return "it is not YAML" if line is None else f"line {line + 1} is not YAML"


def _read_clients(path: Path, tokens: _TokenTable, worker_tokens: _TokenTable) -> frozenset[str]:
    """Read `[{name, token | token_sha256, role, tenant}]`; role defaults to user. With the role worker it is
    the token of the one worker with that name; gives the names of these.
    """
    workers: set[str] = set()
    import yaml

    where = f"TUTTI_CLIENTS_FILE: {path}"
    try:
        entries = yaml.safe_load(path.read_text("utf-8")) or []
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InvalidSetting(f"{where}: {_without_content(error)}") from error
    if not isinstance(entries, list):
        raise InvalidSetting(f"{where}: must be a list")
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise InvalidSetting(f"{where}: entry {number} needs a name")
        try:
            digest = (
                bytes.fromhex(entry["token_sha256"]) if "token_sha256" in entry else _digest(entry["token"])
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InvalidSetting(f"{where}: entry {number} needs token or token_sha256") from None
        grant = _grant(where, entry["name"], entry.get("role", "user"), entry.get("tenant"))
        if grant.role == "worker":
            workers.add(grant.subject)
            scopes = frozenset({"worker", f"worker:{grant.subject}"})
            worker_tokens.add(digest, _Grant(grant.subject, grant.role, grant.tenant, scopes))
        else:
            tokens.add(digest, grant)
    return frozenset(workers)
