"""The examples of docs/plans.md, each run as it stands there and held to the output that stands there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.integration.running_service import RunningService

pytestmark = pytest.mark.integration

_PAGE = Path(__file__).resolve().parents[2] / "docs" / "plans.md"
_EXAMPLE = re.compile(
    r"<!-- run: (?P<inputs>.+?) -> (?P<output>.+?) -->\n```json\n(?P<plan>.+?)\n```", re.DOTALL
)


def _examples() -> list[Any]:
    found = [match.groupdict() for match in _EXAMPLE.finditer(_PAGE.read_text())]
    assert len(found) == _PAGE.read_text().count("<!-- run: ")
    parsed = [{name: json.loads(text) for name, text in each.items()} for each in found]
    return [pytest.param(each, id=each["plan"]["name"]) for each in parsed]


@pytest.mark.parametrize("example", _examples())
def test_documented_plan_gives_the_documented_output(
    service: RunningService, example: dict[str, Any]
) -> None:
    run_id = service.submit(example["plan"], example["inputs"])
    output = ray.get(service.orchestrator().result.remote(run_id, timeout_s=30), timeout=40)
    assert output == example["output"]
