"""One `tutti up` for all tests of this folder: they look at it from outside, and leave it as it was."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.integration.service_process import REPOSITORY, ServiceProcess, running_process

_VARIABLES = {
    "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'examples' / 'own_agent'}",
    "TUTTI_AGENTS": "word_count.agents:count_words,word_count.agents:CommonWords",
    "TUTTI_EGRESS_ALLOW": "127.0.0.1/32",
    "CLIENT_TOKEN": "client-token",
    "GLOBAL_WORKER_TOKEN": "worker-token",
}


@pytest.fixture(scope="package")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    data_dir = tmp_path_factory.mktemp("whole")
    flows = data_dir / "flows"
    shutil.copytree(REPOSITORY / "examples" / "blueprints", flows)
    variables = {**_VARIABLES, "TUTTI_BLUEPRINTS_DIR": str(flows)}
    with running_process(data_dir, variables) as service:
        yield service
