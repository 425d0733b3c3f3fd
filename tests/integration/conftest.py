"""One Ray for the session, one Redis and one set of actors for each module that asks for `service`.

A module sets `SETTINGS` (fields of Settings) and `POOLS` (declarations as in the pools file) where it needs
others.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import yaml
from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray.cluster_utils import Cluster

from tests.integration.running_service import RunningService

_MODULE = "tests.integration.agents_for_tests"
POOLS: list[dict[str, Any]] = [
    {
        "name": "frail",
        "agents": [f"{_MODULE}:die", f"{_MODULE}:nap"],
        "capabilities": ["die", "nap"],
        "concurrency": 8,
        "num_cpus": 0.1,
    },
    {
        "name": "solo",
        "agents": [f"{_MODULE}:solo"],
        "capabilities": ["solo"],
        "concurrency": 1,
        "num_cpus": 0.1,
    },
    {
        "name": "stuck",
        "agents": [f"{_MODULE}:stuck", f"{_MODULE}:patient"],
        "capabilities": ["stuck", "patient"],
        "concurrency": 4,
        "num_cpus": 0.1,
        "stop_grace_s": 1.0,
    },
    {
        "name": "odd",
        "agents": [f"{_MODULE}:watchful", f"{_MODULE}:picky"],
        "capabilities": ["watchful", "picky"],
        "concurrency": 16,
        "num_cpus": 0.1,
    },
    {
        "name": "unloadable",
        "agents": ["tests.integration.agent_that_cannot_load:unloadable"],
        "capabilities": ["unloadable"],
        "num_cpus": 0.1,
    },
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Cluster]:
    """A Ray of our own, in a short folder: its sockets' paths must stay under 107 bytes.

    Its GPUs are pretended; tests may add nodes, and take away those that they added.
    """
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    folder = Path(tempfile.mkdtemp(prefix="tr", dir="/tmp"))
    ensure_token_if_auth_enabled(create_token_if_missing=True)
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 4,
            "num_gpus": 4,
            "object_store_memory": 100 << 20,
            "include_dashboard": False,
            "temp_dir": str(folder),
            # A killed node is noticed after five refused questions, a slow one has ten seconds for each.
            "_system_config": {"health_check_period_ms": 1000},
        },
    )
    ray.init(address=cluster.address, namespace="tutti")
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    left = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
    _, alive = psutil.wait_procs(left, timeout=10)
    shutil.rmtree(folder, ignore_errors=True)
    assert not alive, f"processes left: {alive}"


@pytest.fixture(scope="module")
def service_of_module(
    ray_cluster: Cluster, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("service")
    pools_file = folder / "pools.yaml"
    pools_file.write_text(yaml.safe_dump({"pools": POOLS + getattr(request.module, "POOLS", [])}))
    service = RunningService(
        folder,
        pools_file=pools_file,
        agents=("actors.agents.basic:Crash",),
        **getattr(request.module, "SETTINGS", {}),
    )
    yield service
    service.stop()
    assert not [name for name in ray.util.list_named_actors() if name.startswith("tutti:")]


@pytest.fixture
def service(service_of_module: RunningService) -> Iterator[RunningService]:
    """The running service; after each test nothing of the test may be left in it."""
    yield service_of_module
    service_of_module.await_nothing_left()
