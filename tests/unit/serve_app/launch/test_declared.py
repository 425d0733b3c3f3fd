"""Settings that only a started process looked at are refused before anything is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.errors import InvalidSetting
from cluster.settings import Settings
from serve_app.launch.declared import check_declared


def test_settings_that_can_be_used_pass_without_a_word(tmp_path: Path) -> None:
    pools = tmp_path / "pools.yaml"
    pools.write_text("pools: [{name: mine, agents: ['actors.agents.basic:Noop']}]")
    keys = {"A": "secret:user:acme"}
    settings = Settings(
        api_keys=keys, pools_file=pools, jwt_secret="x" * 32, agents=("actors.agents.basic:Sleep",)
    )
    assert check_declared(settings) == ()


@pytest.mark.parametrize(
    ("pair", "reason"),
    [("top-secret:bogus", "'bogus' is not one of"), ("top-secret:user:a~b", "'a~b' is not")],
)
def test_key_whose_role_or_tenant_is_none_is_refused_by_its_name_and_without_the_key(
    pair: str, reason: str
) -> None:
    with pytest.raises(InvalidSetting, match=rf"^ORCHESTRATOR_API_KEY_Z: {reason}") as refused:
        check_declared(Settings(api_keys={"Z": pair}))
    assert "top-secret" not in refused.value.message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"\xff\xfe\x00", "decode|unacceptable"),
        (b"pools: [", "expected"),
        (b"pools: [{name: x, agents: []}]", "pool x: agents must be at least one"),
        (b"pools: [{name: x, agents: ['a:B'], num_gpus: 0.3}]", "nearest are"),
        (b"pools: [{name: x, agents: ['a:B'], gang_size: 2000000}]", "pool x: gang_size must be 1 to 1,000"),
        (b"pool: []", "unknown field"),
        (b"limits: {a: {max_concurrent: -1}}", "limit"),
    ],
)
def test_pools_file_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "pools.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidSetting, match=reason) as refused:
        check_declared(Settings(pools_file=path))
    assert refused.value.message.startswith(f"TUTTI_POOLS_FILE: {path}: ")
    assert "\n" not in refused.value.message


def test_clients_file_that_cannot_be_read_is_refused_without_what_stands_in_it(tmp_path: Path) -> None:
    path = tmp_path / "clients.yaml"
    path.write_text("- {name: a, token: top-secret\n- b: [")
    with pytest.raises(InvalidSetting, match=r"^TUTTI_CLIENTS_FILE: .*line \d+ is not YAML$") as refused:
        check_declared(Settings(clients_file=path))
    assert "top-secret" not in refused.value.message


@pytest.mark.parametrize("module", ["nomod", "actors.agents.nomod", "actors.agents.basic.deeper"])
def test_agent_whose_module_is_not_here_is_a_warning_since_other_nodes_may_have_it(module: str) -> None:
    (warning,) = check_declared(Settings(agents=(f"{module}:X",)))
    assert warning.startswith(f"TUTTI_AGENTS: there is no module {module} here")


def test_module_in_the_working_directory_is_found_and_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_here").mkdir()
    (tmp_path / "mine_here" / "agents.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    assert check_declared(Settings(agents=("mine_here.agents:X",))) == ()


def test_short_jwt_secret_is_a_warning_where_nobody_needs_a_token() -> None:
    (warning,) = check_declared(Settings(jwt_secret="short-one"))
    assert warning.startswith("ORCHESTRATOR_JWT_SECRET: ")
    assert "short-one" not in warning


def test_checking_does_not_import_ray_which_must_find_its_environment_first() -> None:
    code = "import sys, serve_app.launch.declared, serve_app.launch.up; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_service_with_such_a_setting_ends_with_the_line_and_has_started_nothing(
    tmp_path: Path,
) -> None:
    environment = {**os.environ, "ORCHESTRATOR_API_KEY_Z": "top-secret:bogus"}
    command = [sys.executable, "-m", "serve_app.cli", "up", "--data-dir", str(tmp_path / "data")]
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("error: ORCHESTRATOR_API_KEY_Z: 'bogus' is not one of ")
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_blueprint_at_a_path_that_is_not_free_is_refused_and_a_broken_one_is_a_warning(
    tmp_path: Path,
) -> None:
    text = "{name: mine, endpoint: /other, start: done, states: {done: end}}"
    (tmp_path / "broken.yaml").write_text("name: [")
    (tmp_path / "mine.yaml").write_text(text)
    settings = Settings(data_dir=tmp_path / "data", blueprints_dir=tmp_path)
    (warning,) = check_declared(settings)
    assert warning.startswith(f"TUTTI_BLUEPRINTS_DIR: {tmp_path}/broken.yaml: not YAML")
    (tmp_path / "mine.yaml").write_text(text.replace("/other", "/runs"))
    with pytest.raises(InvalidSetting, match=r"TUTTI_BLUEPRINTS_DIR: .*POST /api/v1/runs clashes"):
        check_declared(settings)


def test_agents_in_a_folder_in_a_folder_without_init_files_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outer_here" / "inner").mkdir(parents=True)
    (tmp_path / "outer_here" / "inner" / "agents.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert check_declared(Settings(agents=("outer_here.inner.agents:X",))) == ()
    assert len(check_declared(Settings(agents=("outer_here.inner.none:X",)))) == 1
    assert len(check_declared(Settings(agents=("outer_here.none.agents:X",)))) == 1
