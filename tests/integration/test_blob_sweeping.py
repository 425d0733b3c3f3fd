"""The running service sweeps its blobs by itself."""

from __future__ import annotations

import os
import time
from typing import Any

from cluster.store.blobs import BlobStore
from tests.integration.plans import one_step
from tests.integration.running_service import RunningService, eventually

SETTINGS: dict[str, Any] = {"blob_sweep_interval_s": 1.0}


def test_service_removes_what_no_run_names_and_keeps_the_rest(service: RunningService) -> None:
    store = BlobStore(service.settings.blobs_dir)
    run_id = service.submit(one_step("noop"), {"text": "x" * 300 * 1024})
    service.await_ended([run_id])
    orphan = store.put(b"nobody's", "text/plain")
    then = time.time() - 7200.0
    blobs = list((service.settings.blobs_dir / "blobs").glob("*/*"))
    assert len(blobs) > 1
    for path in blobs:
        os.utime(path, (then, then))
    eventually(lambda: not store.exists(orphan), "the orphan is removed")
    # One more round: whatever it removes, it must leave these alone.
    second = store.put(b"nobody's either", "text/plain")["$blob"]
    os.utime(service.settings.blobs_dir / "blobs" / second[7:9] / second[9:], (then, then))
    eventually(lambda: not store.exists(second), "the second orphan is removed")
    assert sum(path.exists() for path in blobs) == len(blobs) - 1
