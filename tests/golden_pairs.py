"""Recorded requests and answers of the documents, and how they are compared with what the service says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx

__all__ = ["assert_matches", "replay"]

_ROOT = Path(__file__).parent / "golden"


def assert_matches(expected: Any, found: Any, where: str = "$") -> None:
    """Compare; "<int>" stands for any value of that type, and objects may have more than is expected."""
    if isinstance(expected, str) and expected.startswith("<"):
        assert type(found).__name__ == expected.strip("<>"), where
    elif isinstance(expected, dict):
        assert isinstance(found, dict), where
        assert set(expected) <= set(found), where
        for name, value in expected.items():
            assert_matches(value, found[name], f"{where}.{name}")
    elif isinstance(expected, list):
        assert len(expected) == len(found), where
        for position, value in enumerate(expected):
            assert_matches(value, found[position], f"{where}[{position}]")
    else:
        assert expected == found, where


async def replay(client: httpx.AsyncClient, document: str, name: str, **values: str) -> Any:
    """Send a recorded request and compare the answer; `values` stand for {names} in both."""
    text = (_ROOT / document / f"{name}.json").read_text()
    for key, value in values.items():
        text = text.replace(f"{{{key}}}", value)
    pair = json.loads(text)
    request = pair["request"]
    response = await client.request(request["method"], request["path"], json=request.get("body"))
    assert response.status_code == pair["response"]["status"], response.text
    assert_matches(pair["response"]["body"], response.json())
    return response.json()
