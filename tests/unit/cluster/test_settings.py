"""Settings: read once, refused early, and never shown with their secrets."""

from __future__ import annotations

import dataclasses
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.errors import InvalidSetting
from cluster.setting_fields import RESERVED
from cluster.settings import Settings, describe_settings, reserved_variables, unknown_variables

SECRETS = {
    "ORCHESTRATOR_JWT_SECRET": "jwt-" + "x" * 40,
    "ORCHESTRATOR_API_KEY_ALICE": "alice-key:admin:acme",
    "CLIENT_TOKEN": "client-secret",
    "GLOBAL_WORKER_TOKEN": "worker-secret",
    "TUTTI_WEBHOOK_SECRET": "webhook-secret",
    "TUTTI_REDIS_URL": "rediss://app:redis-secret@db.internal:6380/2",
}


def test_empty_environment_gives_the_defaults() -> None:
    settings = Settings.from_environment({})
    assert settings == dataclasses.replace(Settings(), data_dir=Path(".tutti").absolute())


def test_each_kind_of_value_is_read_from_its_variable(tmp_path: Path) -> None:
    settings = Settings.from_environment(
        {
            "TUTTI_DATA_DIR": str(tmp_path),
            "TUTTI_HTTP_PORT": "9_000",
            "TUTTI_DURABILITY": "everysec",
            "TUTTI_DEV": "yes",
            "TUTTI_EGRESS_ALLOW": "10.0.0.0/8, fd00::/8",
            "TUTTI_INPUT_DIRS": "/srv/a b:/srv/c,d",
            "TUTTI_MAX_BODY_BYTES": "1.5 MiB",
            "TUTTI_RAY_NUM_GPUS": "2",
            "TUTTI_AGENTS": "my_pkg.agents:Translate",
            "TUTTI_POOLS_FILE": "/etc/tutti/pools.yaml",
            "ORCHESTRATOR_API_KEY_CI": "abc:agent",
        }
    )
    assert settings.data_dir == tmp_path
    assert settings.http_port == 9000
    assert settings.durability == "everysec"
    assert settings.dev is True
    assert settings.egress_allow == ("10.0.0.0/8", "fd00::/8")
    assert settings.input_dirs == ("/srv/a b", "/srv/c,d")
    assert settings.max_body_bytes == 1_572_864
    assert settings.ray_num_gpus == 2.0
    assert settings.agents == ("my_pkg.agents:Translate",)
    assert settings.pools_file == Path("/etc/tutti/pools.yaml")
    assert settings.api_keys == {"CI": "abc:agent"}


def test_flag_goes_before_the_environment_and_none_overrides_nothing() -> None:
    settings = Settings.from_environment({"TUTTI_HTTP_PORT": "9000"}, http_port=9100, grpc_port=None)
    assert (settings.http_port, settings.grpc_port) == (9100, 50051)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TUTTI_HTTP_PORT", "eighty"),
        ("TUTTI_HTTP_PORT", "70000"),
        ("TUTTI_GRPC_PORT", "8000"),
        ("TUTTI_AUTH", "maybe"),
        ("TUTTI_DURABILITY", "none"),
        ("TUTTI_EGRESS_ALLOW", "10.0.0.1/8"),
        ("TUTTI_TRUSTED_PROXIES", "proxy.example"),
        ("TUTTI_INPUT_DIRS", "data"),
        ("TUTTI_RATE_LIMIT", "-1"),
        ("TUTTI_RETENTION_S", "nan"),
        ("TUTTI_STEP_TIMEOUT_S", "inf"),
        ("TUTTI_DEV", "perhaps"),
        ("TUTTI_MAX_BODY_BYTES", "many"),
        ("TUTTI_NUM_PARTITIONS", "0"),
        ("TUTTI_AGENTS", "my_pkg.agents"),
        ("TUTTI_REDIS_URL", "localhost:6379"),
        ("TUTTI_HOST", ""),
        ("TUTTI_LOG_LEVEL", "loud"),
        ("ORCHESTRATOR_API_KEY_BOB", "only-a-key"),
    ],
)
def test_unusable_value_is_refused_with_the_name_of_its_variable(variable: str, value: str) -> None:
    with pytest.raises(InvalidSetting) as refused:
        Settings.from_environment({variable: value})
    assert str(refused.value).startswith(variable)
    assert "\n" not in str(refused.value)


def test_open_service_on_a_public_address_is_refused() -> None:
    for host in ("0.0.0.0", "192.0.2.7", "tutti.example"):
        with pytest.raises(InvalidSetting, match=r"^TUTTI_AUTH"):
            Settings(host=host).check_exposure()
    Settings(host="0.0.0.0", auth="required").check_exposure()
    for host in ("127.0.0.1", "::1", "localhost"):
        Settings(host=host).check_exposure()


def test_short_jwt_secret_is_refused_only_where_a_credential_is_needed() -> None:
    with pytest.raises(InvalidSetting, match=r"^ORCHESTRATOR_JWT_SECRET"):
        Settings(auth="required", jwt_secret="short")
    assert Settings(auth="open", jwt_secret="short").jwt_secret == "short"


def test_no_secret_is_shown_by_repr_or_by_the_list() -> None:
    settings = Settings.from_environment(SECRETS)
    shown = repr(settings) + str(describe_settings(settings))
    for secret in ("jwt-x", "alice-key", "client-secret", "worker-secret", "webhook-secret", "redis-secret"):
        assert secret not in shown
    assert "db.internal" in shown


def test_unreadable_secret_is_not_repeated_in_the_refusal() -> None:
    with pytest.raises(InvalidSetting) as refused:
        Settings.from_environment({"ORCHESTRATOR_API_KEY_BOB": "top-secret"})
    assert "top-secret" not in str(refused.value)


def test_settings_survive_pickling() -> None:
    settings = Settings.from_environment(SECRETS)
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_every_setting_says_what_it_means() -> None:
    for line in describe_settings(Settings()):
        assert line.meaning
        assert line.unit or not line.name.endswith(("_s", "_bytes"))
        assert line.variable.startswith(("TUTTI_", "ORCHESTRATOR_", "CLIENT_TOKEN", "GLOBAL_WORKER_TOKEN"))


def test_misspelt_variable_is_noticed() -> None:
    names = {"TUTTI_HTTP_PROT": "1", "TUTTI_HTTP_PORT": "1", "TUTTI_URL": "", "HOME": ""}
    assert unknown_variables(names) == ("TUTTI_HTTP_PROT",)


def test_reading_settings_does_not_import_ray() -> None:
    code = "import sys, cluster.settings; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_setting_that_no_code_reads_says_that_it_is_reserved() -> None:
    root = Path(__file__).resolve().parents[3]
    sources = [
        path.read_text()
        for package in ("cluster", "actors", "serve_app")
        for path in (root / package).rglob("*.py")
        if path.name != "settings.py"
    ]
    # Read by a property or a check of Settings itself, under another name.
    through = {"redis_url", "host"}
    for line in describe_settings(Settings()):
        is_read = any(re.search(rf"settings\.{line.name}\b", source) for source in sources)
        assert (is_read or line.name in through) != (RESERVED in line.meaning), line.name


def test_reserved_settings_that_were_given_a_value_are_named() -> None:
    assert reserved_variables(Settings()) == ()
    given = Settings.from_environment({"TUTTI_DEV": "1", "TUTTI_TEMPLATES_DIR": "/srv/templates"})
    assert reserved_variables(given) == ("TUTTI_TEMPLATES_DIR", "TUTTI_DEV")
