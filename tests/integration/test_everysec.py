"""Durability `everysec`: a crash of Redis takes nothing, a power cut its last second and nothing else.

After a power cut owners know more than the store: what they know must go, or half a Run comes back.
"""

from __future__ import annotations

import os
from pathlib import Path

from cluster.model.plan import Submission
from tests.integration.plans import check_sound, mixed_load
from tests.integration.running_service import RunningService, eventually
from tests.integration.submitter import Submitter

SETTINGS = {"durability": "everysec"}


def test_kill_of_redis_under_load_loses_nothing_that_was_accepted(service: RunningService) -> None:
    assert service.redis.config_get("appendfsync") == {"appendfsync": "everysec"}
    load = mixed_load(800, longest_s=2.0)
    with Submitter(service, load) as submitter:
        eventually(lambda: len(submitter.accepted) >= 300, "much is under way")
        before = service.events(each.run_id for each in load[:300])
        service.redis_server.kill()
        at_the_kill = len(submitter.accepted)
        assert service.redis_server.restart_if_dead()
    assert at_the_kill < len(load), "it was killed too late to prove anything"

    check_all(service, load)

    after = service.events(before)
    for run_id, known in before.items():
        assert after[run_id][: len(known)] == known


def test_power_cut_takes_the_last_moments_whole_and_nothing_else(service: RunningService) -> None:
    """The tail of the file that was never synced is gone; all that was later is as if it had never been."""
    load = mixed_load(400, longest_s=2.0)
    service.submit_all(load[:250])
    eventually(lambda: num_ended(service, load) >= 20, "some have ended")
    (file,) = append_only_files(service)
    synced_bytes = file.stat().st_size
    before = num_ended(service, load)
    service.submit_all(load[250:])
    eventually(lambda: num_ended(service, load) >= before + 60, "more have ended")

    service.redis_server.kill()
    os.truncate(file, synced_bytes)
    assert service.redis_server.restart_if_dead()

    stored = service.fields(each.run_id for each in load)
    kept = [each for each in load if b"header" in stored[each.run_id]]
    assert 250 <= len(kept) < len(load)
    check_all(service, kept)
    stored = service.fields(each.run_id for each in load)
    halves = {run_id: fields for run_id, fields in stored.items() if fields and b"header" not in fields}
    assert not halves, "Runs came back without their Plan"
    assert sum(map(bool, stored.values())) == len(kept)
    more = mixed_load(50)
    service.submit_all(more)
    check_all(service, more)


def check_all(service: RunningService, load: list[Submission]) -> None:
    ended = service.await_ended([each.run_id for each in load], within_s=90)
    views, events = service.views(ended), service.events(ended)
    for each in load:
        check_sound(each, views[each.run_id], events[each.run_id])


def num_ended(service: RunningService, load: list[Submission]) -> int:
    return sum(record.status.is_terminal for record in service.records(each.run_id for each in load).values())


def append_only_files(service: RunningService) -> list[Path]:
    return list((service.settings.data_dir / "redis").rglob("*.aof"))
