"""A replica dies under its work: what it held is done again elsewhere, and only the guilty one is blamed."""

from __future__ import annotations

from collections import Counter

from tests.integration.plans import check_sound, check_story, mixed_load, one_step
from tests.integration.running_service import RunningService


def test_kill_of_a_replica_in_mid_step_repeats_its_attempts_and_loses_no_run(service: RunningService) -> None:
    load = mixed_load(400)
    service.submit_all(load)
    sleeper = next(each.run_id for each in load if each.plan.name == "sleep")
    service.await_running(sleeper)

    service.kill(service.replica_pid("basic"))

    ended = service.await_ended([each.run_id for each in load])
    views, events = service.views(ended), service.events(ended)
    for each in load:
        check_sound(each, views[each.run_id], events[each.run_id])
    lost = [
        Counter((event.step, event.item) for event in story if event.type == "step.lost")
        for story in events.values()
    ]
    assert any(lost)
    again = [
        story
        for story, counts in zip(events.values(), lost, strict=True)
        if max(counts.values(), default=0) > 1
    ]
    assert not again, "the dead replica was given the same work again"


def test_step_that_always_kills_its_replica_is_quarantined_and_its_neighbours_succeed(
    service: RunningService,
) -> None:
    naps = [service.submit(one_step("nap", {"seconds": 1.5, "n": n})) for n in range(12)]
    guilty = service.submit(one_step("die", {"after_s": 0.2}))
    more = [service.submit(one_step("nap", {"seconds": 0.5, "n": n})) for n in range(12, 18)]

    ended = service.await_ended([guilty, *naps, *more], within_s=90)

    error = ended[guilty].error
    assert error is not None
    assert error.code == "EXECUTION_FAILED"
    assert error.message.startswith("quarantined after 3 crashes: attempt 1 on agent-frail-")
    assert error.message.count("attempt ") == 3
    for run_id, view in service.views([*naps, *more]).items():
        assert view.status == "succeeded", view
        check_story(view, service.events([run_id])[run_id])


def test_step_that_kills_its_replica_once_succeeds_on_its_second_attempt(service: RunningService) -> None:
    run_id = service.submit(one_step("crash", {"times": 1}))

    service.await_ended([run_id])

    view = service.view(run_id)
    assert view.output == {"survived_attempt": 2}
    assert len(view.steps[0].story) == 1
    check_story(view, service.events([run_id])[run_id])
