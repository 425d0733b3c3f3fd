"""A real context for agents: blobs are files in the test's own folder, progress is kept in order."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


class FolderContext:
    """An AgentContext whose blobs lie in a folder."""

    def __init__(self, folder: Path, attempt: int = 1) -> None:
        self.run_id = "run-1"
        self.step = "step"
        self.item = -1
        self.attempt = attempt
        self.tenant = "default"
        self.metadata: dict[str, Any] = {}
        self.deadline_at: float | None = None
        self.idempotency_key = "run-1/step"
        self.input_dirs: tuple[str, ...] = ()
        self.egress_allow: tuple[str, ...] = ()
        self.code_dir = ""
        self.told: list[tuple[float, str]] = []
        self.stop_after: int | None = None
        self._folder = folder
        self._lock = threading.Lock()

    async def progress(self, fraction: float, message: str = "") -> None:
        self.report_progress(fraction, message)

    def report_progress(self, fraction: float, message: str = "") -> None:
        with self._lock:
            self.told.append((fraction, message))

    @property
    def cancelled(self) -> bool:
        return self.stop_after is not None and len(self.told) >= self.stop_after

    def read_blob(self, reference: dict[str, Any]) -> bytes:
        return (self._folder / str(reference["$blob"])).read_bytes()

    def write_blob(self, content: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (self._folder / digest).write_bytes(content)
        return {"$blob": digest, "size_bytes": len(content), "media_type": media_type}


@pytest.fixture
def context(tmp_path: Path) -> FolderContext:
    folder = tmp_path / "blobs"
    folder.mkdir()
    return FolderContext(folder)


@pytest.fixture
def context_on_attempt(tmp_path: Path) -> Callable[[int], FolderContext]:
    return lambda attempt: FolderContext(tmp_path, attempt)


@pytest.fixture(scope="session")
def samples() -> Path:
    return Path(__file__).resolve().parents[4] / "examples" / "data"
