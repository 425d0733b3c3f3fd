"""The scheduler dies: what it gave out is used on, and what it owned is found again or freed, each once."""

from __future__ import annotations

import ray

from actors import handles
from cluster import placement_groups
from tests.integration.plans import check_sound, mixed_load, one_step
from tests.integration.running_service import RunningService, eventually


def kill_scheduler(service: RunningService) -> int:
    pid = service.actor_pid("Scheduler")
    service.kill(pid)
    return pid


def await_new_scheduler(service: RunningService, old_pid: int) -> None:
    eventually(lambda: service.actor_pid("Scheduler") != old_pid, "another scheduler lives")
    eventually(
        lambda: ray.get(handles.find_actor(handles.SCHEDULER).start.remote(), timeout=20) is None,
        "it has looked at everything",
    )


def replica_actors() -> list[str]:
    return handles.list_actors("tutti:replica:")


def test_granted_slots_go_on_while_the_scheduler_is_dead(service: RunningService) -> None:
    ray.get([service.orchestrator(n).submit.remote(one_step("noop")) for n in (0, 1)])
    eventually(lambda: service.replicas("basic"), "a replica")
    before = service.replicas("basic")
    load = mixed_load(300)
    pid = kill_scheduler(service)

    service.submit_all(load)
    ended = service.await_ended([each.run_id for each in load])

    await_new_scheduler(service, pid)
    assert service.replicas("basic") == before
    views, events = service.views(ended), service.events(ended)
    for each in load:
        check_sound(each, views[each.run_id], events[each.run_id])
    assert not [event for story in events.values() for event in story if event.type == "step.lost"]


def test_new_scheduler_knows_all_replicas_and_groups_of_the_old_one_and_no_others(
    service: RunningService,
) -> None:
    runs = [
        service.submit(one_step(each, {"seconds": 0.1, "name": each})) for each in ("nap", "solo", "sleep")
    ]
    service.await_ended(runs)
    before = set(service.scheduler_status()["replicas"])
    assert {name.rpartition("-")[0] for name in before} >= {"agent-frail", "agent-solo", "agent-basic"}

    await_new_scheduler(service, kill_scheduler(service))

    assert set(service.scheduler_status()["replicas"]) == before
    assert set(placement_groups.list_named()) == before
    assert sorted(replica_actors()) == sorted(before)
    again = [
        service.submit(one_step(each, {"seconds": 0.1, "name": each})) for each in ("nap", "solo", "sleep")
    ]
    service.await_ended(again)
    assert set(service.scheduler_status()["replicas"]) == before


def test_kill_of_the_scheduler_while_replicas_start_leaves_no_orphan(service: RunningService) -> None:
    runs = [
        service.submit(one_step("patient", {"seconds": 0.1})),
        service.submit(one_step("picky", {"ripe_at": 0})),
    ]
    eventually(
        lambda: any(pool["starting"] for pool in service.scheduler_status()["pools"].values()),
        "a replica is starting",
    )

    await_new_scheduler(service, kill_scheduler(service))

    for record in service.await_ended(runs).values():
        assert record.status == "succeeded", record.error
    assert sorted(replica_actors()) == sorted(service.scheduler_status()["replicas"])


def test_replica_that_dies_after_the_scheduler_was_restarted_is_noticed_and_replaced(
    service: RunningService,
) -> None:
    service.await_ended([service.submit(one_step("nap", {"seconds": 0.0}))])
    before = service.replicas("frail")
    await_new_scheduler(service, kill_scheduler(service))

    service.kill(service.replica_pid("frail"))

    eventually(lambda: not set(service.replicas("frail")) & set(before), "its death is noticed")
    nap = service.submit(one_step("nap", {"seconds": 0.0}))
    assert service.await_ended([nap])[nap].status == "succeeded"


def test_group_and_actor_that_stand_in_no_ledger_are_reclaimed(service: RunningService) -> None:
    group = placement_groups.reserve("agent-nobodys-1", [{"CPU": 0.1}])

    @ray.remote(num_cpus=0.1)
    class Orphan:
        def ready(self) -> bool:
            return True

    for number, options in enumerate([{}, {"scheduling_strategy": placement_groups.strategy_in(group)}]):
        Orphan.options(  # type: ignore[attr-defined]
            name=f"tutti:replica:agent-nobodys-{number}",
            namespace=handles.NAMESPACE,
            lifetime="detached",
            **options,
        ).remote()

    await_new_scheduler(service, kill_scheduler(service))

    eventually(lambda: "agent-nobodys-1" not in placement_groups.list_named(), "the group is freed")
    eventually(
        lambda: not [name for name in replica_actors() if name.startswith("agent-nobodys")],
        "the actors are ended",
    )
