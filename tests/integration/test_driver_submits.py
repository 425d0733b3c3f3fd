"""What Python drivers submit to the owner of its partition is written with its first transitions, and by the
same rules as at the edge.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import grpc
import pytest
import ray

from actors import connect
from cluster.errors import (
    AlreadyExists,
    InvalidInput,
    InvalidPlan,
    LimitExceeded,
    PayloadTooLarge,
    TuttiError,
    Unavailable,
)
from cluster.model.plan import Submission
from tests.integration.plans import chain, check_sound, one_step
from tests.integration.running_service import RunningService, eventually

SETTINGS = {"max_unfinished_runs": 500}


def test_runs_submitted_to_their_owner_are_as_others_in_the_store(service: RunningService) -> None:
    plan = chain("noop", "noop", "noop")
    ours = ray.get(service.orchestrator(0).submit_many.remote([plan] * 300, [{"n": n} for n in range(300)]))
    assert len(set(ours)) == 300
    partitions = {service.names_of(run_id).partition for run_id in ours}
    assert partitions <= set(service.orchestrator_status(0)["partitions"])

    service.await_ended(ours)

    views, events = service.views(ours), service.events(ours)
    for n, run_id in enumerate(ours):
        check_sound(Submission(run_id=run_id, plan=plan, inputs={"n": n}), views[run_id], events[run_id])
    for number in partitions:
        assert service.redis.zcard(f"tutti:{{{number}}}:active") == 0
        listed = service.redis.zrange(f"tutti:{{{number}}}:index:default", 0, -1)
        assert {run_id.encode() for run_id in ours if service.names_of(run_id).partition == number} <= set(
            listed
        )


def test_runs_submitted_while_their_owner_dies_are_accepted_once_or_not_at_all(
    service: RunningService,
) -> None:
    pid = service.orchestrator_status(0)["pid"]
    orchestrator = service.orchestrator(0)
    answers = [orchestrator.submit.remote(one_step("echo", {"n": n})) for n in range(200)]
    ray.get(answers[:20], timeout=30)
    service.kill(pid)
    accepted = []
    for answer in answers:
        try:
            accepted.append(ray.get(answer, timeout=60))
        except (ray.exceptions.RayError, TuttiError):
            continue  # the caller knows that it does not know
    assert len(accepted) >= 20
    ended = service.await_ended(accepted)
    assert {record.status for record in ended.values()} == {"succeeded"}
    service.orchestrator_status(0, within_s=30)
    eventually(
        lambda: all(service.redis.zcard(f"tutti:{{{n}}}:active") == 0 for n in range(4)), "nothing is left"
    )


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"run_id": "no spaces"}, InvalidInput),
        ({"priority": 101}, InvalidInput),
        ({"timeout_s": -1.0}, InvalidInput),
        ({"after": ("nobody",)}, InvalidInput),
        ({"colour": "red"}, InvalidInput),
        ({"tenant": "a}b{"}, InvalidInput),
        ({"tenant": ""}, InvalidInput),
        ({"tenant": 5}, InvalidInput),
        ({"priority": "high"}, InvalidInput),
        ({"timeout_s": float("nan")}, InvalidInput),
        ({"metadata": {"share": float("nan")}}, InvalidInput),
        ({"metadata": {"kept": {"$blob": "sha256:" + "0" * 64}}}, InvalidInput),
        ({"metadata": {"fill": "x" * 300_000}}, PayloadTooLarge),
        ({"inputs": {"n": float("inf")}}, InvalidInput),
        ({"inputs": {"n": [{1: 2}]}}, InvalidInput),
        ({"inputs": {"n": [{"$blob": "anything"}]}}, InvalidInput),
        ({"webhook_url": "http://127.0.0.1:1/"}, InvalidInput),
    ],
)
def test_option_that_cannot_be_used_is_refused_by_name(
    service: RunningService, options: dict[str, object], error: type[TuttiError]
) -> None:
    with pytest.raises(error):
        ray.get(service.orchestrator().submit.remote(one_step("noop"), **options), timeout=20)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("result", ("x", float("nan"))),
        ("result", ("x", -1)),
        ("result", ("x", "soon")),
        ("result", ("x", True)),
        ("result", (5,)),
        ("result", (None, 1)),
        ("results", ("x", 1)),
        ("results", (None, 1)),
        ("results", ([["x"]], 1)),
        ("get", (5,)),
        ("pause", ({},)),
        ("cancel", (b"x",)),
        ("cancel", ("x", 5)),
        ("set_priority", ("x", "high")),
        ("set_priority", ("x", float("nan"))),
    ],
)
def test_call_whose_values_cannot_be_used_is_refused_and_not_what_asyncio_makes_of_it(
    service: RunningService, method: str, arguments: tuple[object, ...]
) -> None:
    with pytest.raises(InvalidInput):
        ray.get(getattr(service.orchestrator(), method).remote(*arguments), timeout=20)


def test_wait_without_an_end_may_be_told_as_infinity(
    service: RunningService,
) -> None:
    run_id = service.submit(one_step("echo", {"n": 1}))
    orchestrator = service.orchestrator()
    assert ray.get(orchestrator.result.remote(run_id, timeout_s=float("inf")), timeout=30) == {"n": 1}
    assert ray.get(orchestrator.result.remote(run_id, timeout_s=10**400), timeout=30) == {"n": 1}
    waiting = service.submit(one_step("sleep", {"seconds": 60}))
    for limit_s in (0, 0.01, 0.1):
        with pytest.raises(Unavailable, match=f"not ended within {limit_s:g} s"):
            ray.get(orchestrator.result.remote(waiting, timeout_s=limit_s), timeout=20)
    ray.get(orchestrator.cancel.remote(waiting), timeout=20)
    service.await_ended([waiting])


def test_whole_submission_of_a_driver_is_checked_like_its_options(service: RunningService) -> None:
    plan = one_step("noop")
    for wrong in (
        Submission(run_id="", plan=plan, tenant="a}b{"),
        Submission(run_id="", plan=plan, inputs=[float("nan")]),
        Submission(run_id=7, plan=plan),  # type: ignore[arg-type]
    ):
        with pytest.raises(InvalidInput):
            ray.get(service.orchestrator().submit_many.remote([plan, wrong]), timeout=20)


@pytest.mark.parametrize(
    "inputs",
    [
        {"n": float("nan")},
        {"kept": {"$blob": {"$ref": "inputs.digest"}, "media_type": "application/json"}},
    ],
)
def test_plan_with_what_no_client_may_say_is_refused(
    service: RunningService, inputs: dict[str, object]
) -> None:
    with pytest.raises(InvalidPlan):
        ray.get(service.orchestrator().submit.remote(one_step("echo", inputs)), timeout=20)


def _serve_another_cluster(server: grpc.Server) -> int:
    """Answer as the control store of another Ray would."""
    answers = {"CheckAlive": b"", "GetClusterId": b"another"}
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(lambda _request, _context, answer=answer: answer)
        for name, answer in answers.items()
    }
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("ray.rpc.NodeInfoGcsService", handlers),)
    )
    return int(server.add_insecure_port("127.0.0.1:0"))


def test_driver_attached_to_one_cluster_is_not_given_its_orchestrator_for_the_address_of_another(
    service: RunningService,
) -> None:
    own = str(ray.get_runtime_context().gcs_address)
    by_another_name = f"localhost:{own.rpartition(':')[2]}"
    for address in (None, own, by_another_name):
        assert ray.get(connect(address).status.remote(), timeout=20)["pid"]
    with pytest.raises(Unavailable, match="no Ray cluster answers"):
        connect("127.0.0.1:1")
    with ThreadPoolExecutor(1) as threads:
        server = grpc.server(threads)
        port = _serve_another_cluster(server)
        server.start()
        with pytest.raises(Unavailable, match="is another"):
            connect(f"127.0.0.1:{port}")
        server.stop(None).wait()


def test_plan_that_breaks_a_rule_is_refused(service: RunningService) -> None:
    with pytest.raises(InvalidPlan):
        ray.get(service.orchestrator().submit.remote({"name": "p", "steps": []}), timeout=20)


def test_own_id_given_again_is_the_same_run_and_another_request_is_refused(service: RunningService) -> None:
    run_id = uuid4().hex
    for _ in range(2):
        given = service.orchestrator().submit.remote(one_step("noop", {"x": 1}), run_id=run_id)
        assert ray.get(given, timeout=20) == run_id
    with pytest.raises(AlreadyExists):
        ray.get(service.orchestrator().submit.remote(one_step("noop", {"x": 2}), run_id=run_id), timeout=20)
    service.await_ended([run_id])


def test_large_inputs_of_a_driver_go_to_the_blob_store(service: RunningService) -> None:
    text = "a" * 600_000
    run_id = ray.get(
        service.orchestrator().submit.remote(one_step("echo", {"$ref": "inputs"}), {"text": text}), timeout=20
    )
    assert ray.get(service.orchestrator().result.remote(run_id, timeout_s=30), timeout=40) == {"text": text}
    stored = service.redis.hget(service.names_of(run_id).run(run_id), "inputs")
    assert len(stored or b"") < 1000


def test_tenant_at_its_limit_is_refused_but_a_repetition_is_answered(service: RunningService) -> None:
    first = service.submit(one_step("sleep", {"seconds": 60}), run_id="first-of-full", tenant="full")
    waiting = ray.get(
        service.orchestrator().submit_many.remote([one_step("noop")] * 499, tenant="full", after=(first,))
    )
    with pytest.raises(LimitExceeded):
        service.submit(one_step("noop"), tenant="full")

    again = service.submit(one_step("sleep", {"seconds": 60}), run_id="first-of-full", tenant="full")

    assert again == first
    ray.get(service.orchestrator().cancel.remote(first), timeout=20)
    ended = service.await_ended([first, *waiting])
    assert ended[waiting[0]].status == "failed"


def test_driver_names_runs_of_a_tenant_by_their_short_or_their_whole_id(service: RunningService) -> None:
    """Ids belong to their tenant; drivers, who work in all of them, get the whole name."""
    plan = one_step("echo", {"$ref": "run.id"})
    ours, theirs = (service.submit(plan, run_id="same", tenant=tenant) for tenant in ("default", "shop"))
    assert (ours, theirs) == ("same", "shop~same")
    assert service.submit(plan, run_id="shop~same", tenant="shop") == theirs
    unnamed = service.submit(plan, tenant="shop", after=("same",))
    assert unnamed.startswith("shop~")
    service.await_ended([ours, theirs, unnamed])
    outputs = ray.get(service.orchestrator().results.remote([ours, theirs, unnamed]), timeout=20)
    assert outputs == ["same", "same", unnamed.removeprefix("shop~")]
    with pytest.raises(InvalidInput):
        service.submit(plan, run_id="shop~same", tenant="bank")


def test_handle_pauses_resumes_and_reprioritises(service: RunningService) -> None:
    orchestrator = service.orchestrator()
    run_id = service.submit(chain("nap", "noop", seconds=1.0))
    service.await_running(run_id)
    ray.get(orchestrator.pause.remote(run_id), timeout=20)
    assert service.record(run_id).status == "paused"
    ray.get(orchestrator.set_priority.remote(run_id, 90), timeout=20)
    assert service.record(run_id).priority == 90
    ray.get(orchestrator.resume.remote(run_id), timeout=20)
    assert service.await_ended([run_id])[run_id].status == "succeeded"
