"""The lights go out: every process of the service is killed under a load, then it starts on the same data."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import redis
import yaml

from cluster.model.plan import Plan, Step, Submission
from cluster.model.view import RunEvent
from cluster.settings import INSTANCE_VARIABLE, Settings
from serve_app.launch.processes import find_process, mark_of
from serve_app.launch.ray_environment import free_ports
from tests.integration.leaks import unfinished_business
from tests.integration.plans import check_sound, check_story, mixed_load, one_step, ref
from tests.integration.running_service import eventually
from tests.integration.service_process import running_process
from tests.integration.stored_runs import StoredRuns
from tests.integration.stubborn_client import StubbornClient, answers
from tests.key_leaks import leaked_keys

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

NUM_RUNS = 1400
NUM_IN_FLIGHT = 1000
NUM_SLOTS = 8
"""Few, so that much still waits when the lights go out."""
MARKED = Plan(
    name="marked",
    steps=(
        Step(name="a", capability="patient", inputs=ref("inputs")),
        Step(name="b", capability="noop", inputs=ref("steps.a.output")),
        Step(name="c", capability="noop", inputs=ref("steps.b.output")),
    ),
)
"""Its first step's result tells the attempt and the process that made it: no other attempt makes the same."""

HALFWAY = Plan(
    name="halfway",
    steps=(
        Step(name="first", capability="patient", inputs={"seconds": 0.0}),
        Step(name="then", capability="patient", inputs=ref("inputs"), needs=("first",)),
    ),
)
"""Its first step has ended when the lights go out, its second never would."""


class Accepted(NamedTuple):
    """What was durable at the kill: results by Run and field, and events."""

    results: dict[str, dict[bytes, bytes]]
    events: dict[str, list[RunEvent]]


def test_kill_of_every_process_under_load_loses_no_run_and_repeats_no_result(tmp_path: Path) -> None:
    pools_file = tmp_path / "pools.yaml"
    ports, data_dir, variables = free_ports(2), tmp_path / "data", {"TUTTI_POOLS_FILE": str(pools_file)}
    load = mixed_load(NUM_RUNS, longest_s=1.5)
    endless, marked = many(HALFWAY, 45, 600.0), many(MARKED, 15, 1.5)
    gate = tmp_path / "gate"
    shut = one_step("gated", {"gate": str(gate)})
    gated = [Submission(run_id=f"gated-{n}", plan=shut) for n in range(NUM_SLOTS)]
    run_ids = [each.run_id for each in (*gated, *endless, *marked, *load)]

    with StubbornClient(f"http://127.0.0.1:{ports[0]}", num_threads=12) as client:
        write_pools(pools_file, concurrency=NUM_SLOTS)
        with running_process(data_dir, variables, ports) as first, stored_runs(data_dir) as stored:
            submits = [client.submit(each) for each in (*gated, *endless, *marked)]
            answers(submits, 30)
            eventually(lambda: all(has_started(stored, each) for each in gated), "the gate is shut")
            eventually(lambda: all(has_result(stored, each) for each in endless), "many are in the middle")
            submits += [client.submit(each) for each in load[:-100]]
            cancels = [client.cancel(each.run_id, "early") for each in endless[:15]]
            answers([*submits, *cancels], 60)
            gate.touch()
            eventually(lambda: stored.totals().get("succeeded", 0) > 30, "much begins and ends")
            submits += [client.submit(each) for each in load[-100:]]
            cancels += [client.cancel(each.run_id, "at the kill") for each in endless[15:30]]
            before = kill_everything(first.pid, data_dir, stored, run_ids)
        in_flight = [i for i, story in before.events.items() if story and not is_over(story)]
        assert len(in_flight) >= NUM_IN_FLIGHT
        in_the_middle = [run_id for run_id in in_flight if before.results[run_id]]
        assert len(in_the_middle) >= 15, "those that nobody had cancelled"

        write_pools(pools_file, concurrency=256)
        with running_process(data_dir, variables, ports), stored_runs(data_dir) as stored:
            cancels += [client.cancel(each.run_id, "late") for each in endless[30:]]
            given = answers(submits, 60)
            assert {answer.status for answer in (*given, *answers(cancels, 60))} == {200}
            assert any(answer.broken for answer in given), "no request was under way at the kill"
            stored.await_ended(run_ids, within_s=60)
            check_all(stored, before, load, endless, marked)
            eventually(
                lambda: not unfinished_business(stored.redis, stored.num_partitions), "nothing is left"
            )
            assert not leaked_keys(url_of(data_dir))
            # Each request was accepted once: a repeated one met its own Run.
            assert stored.totals()["submitted"] == len(run_ids)


def check_all(
    stored: StoredRuns,
    before: Accepted,
    load: list[Submission],
    endless: list[Submission],
    marked: list[Submission],
) -> None:
    run_ids = list(before.events)
    views, after = stored.views(run_ids), accepted_so_far(stored, run_ids)
    for each in load:
        check_sound(each, views[each.run_id], after.events[each.run_id])
    for number, each in enumerate(endless):
        view = views[each.run_id]
        assert view.status == "cancelled", view
        assert view.cancel_reason == ("early", "at the kill", "late")[number // 15]
        check_story(view, after.events[each.run_id])
    for each in marked:
        view = views[each.run_id]
        assert view.status == "succeeded", view
        assert view.output["attempt"] == view.steps[0].attempt
        assert [step.output for step in view.steps] == [view.output] * 3
        check_story(view, after.events[each.run_id])
    for run_id in run_ids:
        known = before.events[run_id]
        assert after.events[run_id][: len(known)] == known, f"{run_id}: its past was written anew"
        assert before.results[run_id].items() <= after.results[run_id].items(), f"{run_id}: a result changed"
    ends = Counter(view.status.value for view in views.values())
    assert {name: count for name, count in stored.totals().items() if name != "submitted"} == ends


def kill_everything(pid: int, data_dir: Path, stored: StoredRuns, run_ids: list[str]) -> Accepted:
    """Freeze all but Redis at one moment, see what is durable by then, and let nobody wake up again."""
    instance = json.loads((data_dir / "runtime.json").read_bytes())["instance"]
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    marks = [mark for process in processes if (mark := mark_of(process.pid)) is not None]
    assert {mark.name for mark in marks} >= {"raylet", "gcs_server", "haproxy", "redis-server"}
    send_to_all((each for each in processes if each.name() != "redis-server"), signal.SIGSTOP)
    accepted = accepted_so_far(stored, run_ids)
    send_to_all(processes, signal.SIGKILL)
    eventually(lambda: not any(find_process(mark) for mark in marks), "all are dead", within_s=10)
    assert not [each for each in psutil.process_iter() if carries(each, instance)], "somebody has survived"
    return accepted


def send_to_all(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def carries(process: psutil.Process, instance: str) -> bool:
    try:
        return bool(process.environ().get(INSTANCE_VARIABLE) == instance)
    except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        return False


def write_pools(path: Path, concurrency: int) -> None:
    basic = [f"actors.agents.basic:{name}" for name in ("Noop", "Sleep", "Fail")]
    basic.append("tests.integration.agents_for_tests:gated")
    slow = ["tests.integration.agents_for_tests:patient"]
    pools = [
        {"name": "basic", "agents": basic, "concurrency": concurrency, "num_cpus": 0.1},
        {"name": "slow", "agents": slow, "concurrency": 64, "num_cpus": 0.1},
    ]
    path.write_text(yaml.safe_dump({"pools": pools}))


def many(plan: Plan, count: int, seconds: float) -> list[Submission]:
    return [
        Submission(run_id=f"{plan.name}-{n}", plan=plan, inputs={"seconds": seconds}) for n in range(count)
    ]


def accepted_so_far(stored: StoredRuns, run_ids: list[str]) -> Accepted:
    results = {
        run_id: {name: value for name, value in fields.items() if name.startswith(b"r:")}
        for run_id, fields in stored.fields(run_ids).items()
    }
    return Accepted(results, stored.events(run_ids))


def has_started(stored: StoredRuns, submission: Submission) -> bool:
    story = stored.events([submission.run_id])[submission.run_id]
    return any(event.type == "step.started" for event in story)


def has_result(stored: StoredRuns, submission: Submission) -> bool:
    return any(name.startswith(b"r:") for name in stored.fields([submission.run_id])[submission.run_id])


def is_over(story: list[RunEvent]) -> bool:
    return story[-1].type in {"run.succeeded", "run.failed", "run.cancelled"}


def url_of(data_dir: Path) -> str:
    socket = json.loads((data_dir / "redis" / "server.json").read_bytes())["socket"]
    return f"unix://{socket}"


@contextmanager
def stored_runs(data_dir: Path) -> Iterator[StoredRuns]:
    client = redis.Redis.from_url(url_of(data_dir))
    yield StoredRuns(client, Settings().num_partitions)
    client.close()
