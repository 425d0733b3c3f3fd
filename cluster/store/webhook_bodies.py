"""What a webhook says of a Run: that it ended, or waits in quarantine. A dialect may give other words.

A Run's `webhook_words` map names of fields, events and statuses; what is not there keeps the core's word.
"""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from cluster.engine import Run
from cluster.lifecycle.run_status import RunStatus
from cluster.model.run_id import client_id
from cluster.model.view import Failure

__all__ = ["QUARANTINED", "end_webhook", "quarantine_webhook"]

QUARANTINED = "quarantined"


def end_webhook(run: Run) -> bytes:
    """Make the entry of the outbox for a Run that ended."""
    status = run.record.status
    output = orjson.Fragment(run.render_output()) if status is RunStatus.SUCCEEDED else None
    return _entry(run, status, run.record.error, output)


def quarantine_webhook(run: Run, failure: Failure) -> bytes:
    """Make the entry for one that waits for somebody to look."""
    return _entry(run, QUARANTINED, failure, None)


def _entry(run: Run, status: str, failure: Failure | None, output: Any) -> bytes:
    words = run.header.webhook_words
    event = f"run_{status}"
    fields = {
        "event": words.get(event, event),
        "run_id": client_id(run.run_id),
        "status": words.get(status, status),
        "error": None if failure is None else msgspec.to_builtins(failure),
        "output": output,
    }
    body = {words.get(name, name): value for name, value in fields.items()}
    return orjson.dumps(
        {"url": run.header.webhook_url, "payload": orjson.dumps(body).decode(), "failures": 0}
    )
