"""What two orchestrators share: slots by priority, limits of keys; and what is said of those who wait."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import ray

from cluster.model.plan import Plan, Step
from cluster.scheduling.reasons import NodeTooSmall, QuotaReached, RateReached, StepWait
from serve_app.auth import Principal
from serve_app.service import RunService
from tests.integration.declared_pools import DeclaredPools
from tests.integration.running_service import RunningService, eventually


@pytest.fixture
def pools(service: RunningService, tmp_path: Path) -> Iterator[DeclaredPools]:
    declared = DeclaredPools(service, tmp_path)
    yield declared
    declared.remove_all()


def ask(service: RunningService, run_ids: Sequence[str], tenant: str) -> dict[str, StepWait]:
    """Ask the edge why Runs of one Step wait; those that do not are left out."""

    async def why() -> dict[str, StepWait]:
        edge = RunService.connect(service.settings)
        try:
            principal = Principal(subject="test", tenant=tenant, role="user")
            told = {run_id: (await edge.why(principal, run_id))[1] for run_id in run_ids}
            return {run_id: waits[0] for run_id, waits in told.items() if waits}
        finally:
            await edge.close()

    return asyncio.run(why())


def test_tenant_at_its_limit_is_told_how_many_run_and_other_tenants_pass(
    service: RunningService, pools: DeclaredPools
) -> None:
    pools.limit("tenant:x", max_concurrent=4)
    eventually(lambda: pools.snapshot().limits, "the limit is known")
    pools.declare("wide", capabilities=["many"], concurrency=32)

    reached = QuotaReached(key="tenant:x", num_used=4, limit=4)
    with pools.work("many", 10, tenant="x") as run_ids:
        eventually(lambda: pools.num_begun() == 4, "four run")
        waits = eventually(
            lambda: (
                found
                if len(found := ask(service, run_ids, "x")) == 6
                and all(each.reason == reached for each in found.values())
                else None
            ),
            "six wait for the key, and the scheduler tells that four have it",
        )
        assert {wait.sentence for wait in waits.values()} == {"The limit of tenant:x is reached: 4/4 run."}
        with pools.work("many", 2, tenant="y") as others:
            eventually(lambda: pools.num_begun() == 6, "those of another tenant begin")
            assert ask(service, others, "y") == {}

        pools.limit("tenant:x", max_concurrent=5)
        eventually(lambda: pools.num_begun() == 7, "the fifth begins once the limit is raised")


def test_rate_key_lets_its_burst_begin_and_tells_until_when_the_next_waits(
    service: RunningService, pools: DeclaredPools
) -> None:
    pools.limit("mail", rate="2/h", burst=2)
    eventually(lambda: pools.snapshot().limits, "the limit is known")
    pools.declare("wide", capabilities=["many"], concurrency=32)

    with pools.work("many", 8, tenant="x", step={"keys": ("mail",)}) as run_ids:
        waits = eventually(
            lambda: (
                found
                if (found := ask(service, run_ids, "x"))
                and all(isinstance(each.reason, RateReached) for each in found.values())
                else None
            ),
            "the others wait for the key",
        )
        eventually(lambda: pools.num_begun() == 8 - len(waits), "the burst has begun")
        assert pools.num_begun() == 2
        for wait in waits.values():
            assert isinstance(wait.reason, RateReached)
            assert (wait.reason.key, wait.reason.num, wait.reason.per_s) == ("mail", 2.0, 3600.0)
            assert wait.until_at is not None
        with pools.work("many", 1, tenant="x"):
            eventually(lambda: pools.num_begun() == 3, "what has not the key begins")
        service.command(list(waits), "cancel")


def test_step_of_a_pool_that_no_node_can_carry_tells_what_is_too_large(
    service: RunningService, pools: DeclaredPools
) -> None:
    pools.declare("huge", capabilities=["one"], num_cpus=1000)
    with pools.work("one", tenant="x") as run_ids:
        wait = eventually(
            lambda: next(
                (
                    each
                    for each in ask(service, run_ids, "x").values()
                    if isinstance(each.reason, NodeTooSmall)
                ),
                None,
            ),
            "it is told",
        )
        assert isinstance(wait.reason, NodeTooSmall)
        assert (wait.reason.missing, wait.reason.asked) == ("CPU", 1000)
        service.command(run_ids, "cancel")


def test_urgent_step_gets_the_next_free_slot_although_the_other_orchestrator_has_thousands_waiting(
    service: RunningService, pools: DeclaredPools, tmp_path: Path
) -> None:
    pools.declare("narrow", capabilities=["one", "two", "three"], concurrency=1, idle_timeout_s=0.0)
    gate, open_gate = tmp_path / "shut", tmp_path / "open"
    open_gate.touch()

    def plan(capability: str, on: Path, count: int = 0) -> Plan:
        inputs = {"gate": str(on), "log": str(pools.log)}
        step = Step(name="a", capability=capability, inputs=inputs, map=list(range(count)) if count else None)
        return Plan(name=capability, steps=(step,))

    first, second = service.orchestrator(0), service.orchestrator(1)
    holder = ray.get(first.submit.remote(plan("one", gate)), timeout=20)
    eventually(lambda: pools.num_begun() == 1, "the slot is held")
    ordinary = ray.get(first.submit.remote(plan("two", open_gate, 5_000)), timeout=20)
    owner = service.orchestrator_status(0)["id"]
    eventually(
        lambda: service.orchestrator_status(0)["waiting"] == {"two": 5_000}, "all are waiting at the first"
    )

    urgent = ray.get(second.submit.remote(plan("three", open_gate), priority=90), timeout=20)
    (replica,) = pools.await_replicas("narrow", 1)
    eventually(
        lambda: not service.scheduler_status()["replicas"][replica]["limits"].get(owner),
        "the slot is to go to the second",
    )
    gate.touch()

    eventually(lambda: pools.num_begun() >= 3, "the next two have begun")
    assert pools.log.read_text().split()[:3] == ["one", "three", "two"]
    service.command(ordinary, "cancel")
    ended = service.await_ended([holder, ordinary, urgent])
    assert ended[urgent].status == "succeeded"
