"""An orchestrator dies or falls asleep under load: others take over, and nothing counts twice."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.model.plan import Plan, Step, Submission
from tests.integration.plans import check_sound, check_story, mixed_load, one_step
from tests.integration.running_service import RunningService, eventually

NUM_RUNS = 1000


def check_all(service: RunningService, load: list[Submission], within_s: float = 90.0) -> None:
    ended = service.await_ended([each.run_id for each in load], within_s)
    views, events = service.views(ended), service.events(ended)
    for each in load:
        check_sound(each, views[each.run_id], events[each.run_id])


def test_kill_of_an_orchestrator_under_load_loses_no_run_and_repeats_no_result(
    service: RunningService,
) -> None:
    load = mixed_load(NUM_RUNS, longest_s=4.0)
    service.submit_all(load)
    service.await_running(next(each.run_id for each in load if each.plan.name == "sleep"))

    service.kill(service.orchestrator_status(0)["pid"])
    epochs = {p: epoch_of(service, p) for p in range(service.settings.num_partitions)}
    eventually(
        lambda: sum(epoch_of(service, p) > epoch for p, epoch in epochs.items()) >= len(epochs) // 2,
        "its partitions have another owner",
        within_s=service.settings.owner_lease_s + 5,
    )

    check_all(service, load)


def test_kill_of_both_orchestrators_at_once_loses_no_run(service: RunningService) -> None:
    load = mixed_load(300, longest_s=3.0)
    service.submit_all(load)

    for status in service.statuses():
        service.kill(status["pid"])

    check_all(service, load)


def test_new_owner_adopts_attempts_that_still_run_instead_of_repeating_them(
    service: RunningService, tmp_path: Path
) -> None:
    log = tmp_path / "began"
    owned = set(service.orchestrator_status(0)["partitions"])
    naps = [service.submit(one_step("nap", {"seconds": 9.0, "log": str(log), "n": n})) for n in range(8)]
    eventually(lambda: log.exists() and len(log.read_text().splitlines()) == 8, "all naps began")
    assert any(service.names_of(run_id).partition in owned for run_id in naps)

    service.kill(service.orchestrator_status(0)["pid"])

    service.await_ended(naps)
    for run_id, view in service.views(naps).items():
        assert view.steps[0].attempt == 1
        check_story(view, service.events([run_id])[run_id])
    assert len(log.read_text().splitlines()) == 8, "an agent worked twice"


def test_attempt_that_finished_while_nobody_owned_its_run_is_accepted_from_the_replica(
    service: RunningService, tmp_path: Path
) -> None:
    log = tmp_path / "began"
    naps = [service.submit(one_step("nap", {"seconds": 1.0, "log": str(log), "n": n})) for n in range(8)]
    eventually(lambda: log.exists() and len(log.read_text().splitlines()) == 8, "all naps began")

    for status in service.statuses():
        service.kill(status["pid"])

    service.await_ended(naps)
    assert [view.steps[0].attempt for view in service.views(naps).values()] == [1] * 8
    assert len(log.read_text().splitlines()) == 8, "an agent worked twice"


def test_owner_that_sleeps_past_its_lease_changes_nothing_when_it_wakes_up(
    service: RunningService, tmp_path: Path
) -> None:
    """A virtual machine is paused: its orchestrator wakes up and believes that it still owns its Runs."""
    log = tmp_path / "began"
    sleeper = service.orchestrator_status(0)
    epochs = {p: epoch_of(service, p) for p in sleeper["partitions"]}
    load = mixed_load(300, longest_s=3.0)
    service.submit_all(load)
    naps = [service.submit(one_step("nap", {"seconds": 4.0, "log": str(log), "n": n})) for n in range(8)]
    eventually(lambda: log.exists() and len(log.read_text().splitlines()) == 8, "all naps began")

    with stopped(sleeper["pid"]):
        eventually(
            lambda: set(sleeper["partitions"]) <= set(service.orchestrator_status(1)["partitions"]),
            "the other one has taken over",
        )
        for partition, epoch in epochs.items():
            assert epoch_of(service, partition) > epoch
        check_all(service, load)
        service.await_ended(naps)
        before = service.events([*naps, *(each.run_id for each in load)])

    eventually(
        lambda: len(service.orchestrator_status(0)["partitions"]) == service.settings.num_partitions // 2,
        "it is useful again",
    )
    assert service.events(before) == before, "the one that slept wrote something"
    for run_id, view in service.views(naps).items():
        check_story(view, before[run_id])
        assert view.steps[0].attempt == 1
    more = mixed_load(50)
    service.submit_all(more)
    check_all(service, more)


def test_owner_that_wakes_up_to_an_old_report_starts_nothing_that_is_not_its_own_any_more(
    service: RunningService, tmp_path: Path
) -> None:
    """Steps end while it sleeps and still has its lease; what follows is for the next owner to start."""
    log = tmp_path / "began"
    first = Step(name="a", capability="nap", inputs={"seconds": 1.5, "log": str(log)})
    then = Step(name="b", capability="nap", inputs={"seconds": 0.1, "log": str(log)}, needs=("a",))
    plan = Plan(name="two naps", steps=(first, then))
    load = [Submission(run_id=f"two-naps-{n}", plan=plan) for n in range(8)]
    sleeper = service.orchestrator_status(0)
    service.submit_all(load)
    eventually(lambda: log.exists() and len(log.read_text().splitlines()) == 8, "all first naps began")

    with stopped(sleeper["pid"]):
        service.await_ended([each.run_id for each in load])
        assert any(service.names_of(each.run_id).partition in sleeper["partitions"] for each in load)

    eventually(
        lambda: len(service.orchestrator_status(0)["partitions"]) == service.settings.num_partitions // 2,
        "it is useful again",
    )
    service.await_nothing_left()
    assert len(log.read_text().splitlines()) == 16, "it started a step that was not its own any more"


def test_owner_that_sleeps_while_its_runs_work_on_is_not_missed(service: RunningService) -> None:
    """It sleeps in the middle of everything and wakes up in the middle of everything."""
    load = mixed_load(NUM_RUNS, longest_s=4.0)
    pid = service.orchestrator_status(1)["pid"]
    service.submit_all(load)

    with stopped(pid):
        eventually(
            lambda: len(service.orchestrator_status(0)["partitions"]) == service.settings.num_partitions,
            "the other one has taken over",
        )

    check_all(service, load)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def epoch_of(service: RunningService, partition: int) -> int:
    raw = service.redis.hget(f"tutti:{{{partition}}}:owner", "epoch")
    assert isinstance(raw, bytes)
    return int(raw)
