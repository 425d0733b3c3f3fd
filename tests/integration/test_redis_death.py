"""Redis is killed in mid-work and comes back on the same data: what was accepted is done, once."""

from __future__ import annotations

import time
from pathlib import Path

from tests.integration.plans import check_sound, mixed_load, one_step
from tests.integration.running_service import RunningService, eventually
from tests.integration.submitter import Submitter


def test_kill_of_redis_under_load_loses_nothing_that_was_accepted(service: RunningService) -> None:
    load = mixed_load(1000, longest_s=3.0)
    with Submitter(service, load) as submitter:
        eventually(lambda: len(submitter.accepted) >= 400, "much is under way")
        service.redis_server.kill()
        at_the_kill = len(submitter.accepted)
        assert service.redis_server.restart_if_dead()
    assert at_the_kill < len(load), "it was killed too late to prove anything"
    assert len(submitter.accepted) == len(load)

    ended = service.await_ended([each.run_id for each in load], within_s=90)

    views, events = service.views(ended), service.events(ended)
    for each in load:
        check_sound(each, views[each.run_id], events[each.run_id])


def test_redis_that_stays_away_longer_than_a_lease_stops_nobody_for_good(service: RunningService) -> None:
    """Leases run out while nobody can take them over; a pool at zero wants a replica meanwhile."""
    load = mixed_load(200, longest_s=3.0)
    service.submit_all(load)

    service.redis_server.kill()
    killed_at = time.monotonic()
    eventually(
        lambda: time.monotonic() - killed_at > service.settings.owner_lease_s + 2, "the leases are over"
    )
    assert service.redis_server.restart_if_dead()

    ended = service.await_ended([each.run_id for each in load], within_s=90)
    views, events = service.views(ended), service.events(ended)
    for each in load:
        check_sound(each, views[each.run_id], events[each.run_id])


def test_kill_of_redis_and_of_an_orchestrator_at_once_loses_nothing(service: RunningService) -> None:
    load = mixed_load(300, longest_s=3.0)
    service.submit_all(load)

    service.kill(service.orchestrator_status(0)["pid"])
    service.redis_server.kill()
    assert service.redis_server.restart_if_dead()

    ended = service.await_ended([each.run_id for each in load], within_s=90)
    views, events = service.views(ended), service.events(ended)
    for each in load:
        check_sound(each, views[each.run_id], events[each.run_id])


def test_replica_that_dies_while_redis_is_away_is_replaced_when_it_is_back(service: RunningService) -> None:
    """Without its ledger the scheduler cannot start a replica: that is no fault of the agent's."""
    naps = [service.submit(one_step("nap", {"seconds": 2.0, "n": n})) for n in range(4)]
    for run_id in naps:
        service.await_running(run_id)
    pid = service.replica_pid("frail")

    service.redis_server.kill()
    service.kill(pid)
    killed_at = time.monotonic()
    eventually(lambda: time.monotonic() - killed_at > 4, "the scheduler has tried several times")
    assert service.redis_server.restart_if_dead()

    service.await_ended(naps)
    for view in service.views(naps).values():
        assert view.status == "succeeded", view.error
        assert view.steps[0].attempt == 2


def test_report_that_came_while_redis_was_away_survives_the_death_of_who_received_it(
    service: RunningService, tmp_path: Path
) -> None:
    """A replica may forget a report when its effect is written, not when it has arrived."""
    log = tmp_path / "began"
    short = [service.submit(one_step("nap", {"seconds": 1.5, "log": str(log)})) for _ in range(4)]
    # They keep the lines busy: an acknowledgement travels with the next call.
    long = [service.submit(one_step("nap", {"seconds": 9.0, "log": str(log)})) for _ in range(4)]
    eventually(lambda: log.exists() and len(log.read_text().splitlines()) == 8, "all naps began")

    service.redis_server.kill()
    eventually(lambda: num_held(service) == len(long), "the reports of the short ones have come")
    for status in service.statuses():
        service.kill(status["pid"])
    assert service.redis_server.restart_if_dead()

    service.await_ended([*short, *long])
    assert [view.steps[0].attempt for view in service.views([*short, *long]).values()] == [1] * 8
    assert len(log.read_text().splitlines()) == 8, "an agent worked twice"


def num_held(service: RunningService) -> int:
    return sum(sum(status["held"].values()) for status in service.statuses())
