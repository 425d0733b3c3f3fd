"""Plans and loads that the tests submit, and what must come of them."""

from __future__ import annotations

from collections import Counter
from typing import Any
from uuid import uuid4

from cluster.lifecycle.run_status import RunStatus
from cluster.model.plan import Json, Plan, RetryPolicy, Step, Submission
from cluster.model.view import RunEvent, RunView

__all__ = ["chain", "check_sound", "check_story", "mixed_load", "one_step", "ref"]

_TERMINAL = frozenset({"run.succeeded", "run.failed", "run.cancelled"})
QUICK = RetryPolicy(max_retries=3, initial_delay_s=0.2, max_delay_s=0.4)


def ref(path: str) -> dict[str, str]:
    return {"$ref": path}


def one_step(capability: str, inputs: Json = None, **fields: Any) -> Plan:
    step = Step(name="work", capability=capability, inputs={} if inputs is None else inputs, **fields)
    return Plan(name=capability, steps=(step,))


def chain(*capabilities: str, **inputs: Any) -> Plan:
    """Steps a, b, c, …, each fed with the output of the one before; the first with `inputs`."""
    steps = []
    for position, capability in enumerate(capabilities):
        given = ref(f"steps.{steps[-1].name}.output") if steps else inputs
        steps.append(Step(name="abcdefgh"[position], capability=capability, inputs=given))
    return Plan(name="chain", steps=tuple(steps))


_CHAIN3 = Plan(
    name="chain3",
    steps=(
        Step(name="a", capability="noop", inputs=ref("inputs")),
        Step(name="b", capability="noop", inputs=ref("steps.a.output")),
        Step(name="c", capability="noop", inputs=ref("steps.b.output")),
    ),
)
_SLEEP = Plan(
    name="sleep",
    steps=(
        Step(name="first", capability="sleep", inputs={"seconds": ref("inputs.seconds")}),
        Step(name="then", capability="noop", inputs={"n": ref("inputs.n")}, needs=("first",)),
    ),
)
_MAP = Plan(
    name="map",
    steps=(
        Step(
            name="each",
            capability="noop",
            map=ref("inputs.items"),
            inputs={"x": ref("item"), "i": ref("index")},
        ),
        Step(name="join", capability="noop", inputs=ref("steps.each.output")),
    ),
)
_RETRY = Plan(
    name="retry",
    steps=(Step(name="work", capability="fail", inputs={"times": 1, "retryable": True}, retry=QUICK),),
)
_FAIL = Plan(
    name="fail",
    steps=(
        Step(name="work", capability="fail", inputs={"message": "as planned"}),
        Step(name="never", capability="noop", needs=("work",)),
    ),
)
_WHEN = Plan(
    name="when",
    steps=(
        Step(name="a", capability="noop", inputs=ref("inputs")),
        Step(name="skipped", capability="noop", when={"ref": "steps.a.output.n", "op": "lt", "value": 0}),
        Step(name="done", capability="noop", when={"ref": "steps.a.output.n", "op": "ge", "value": 0}),
    ),
    output=ref("steps.a.output"),
)


def mixed_load(num_runs: int, longest_s: float = 2.0) -> list[Submission]:
    """Make many Runs of all kinds, sleeps of 0.2 s to `longest_s` among them. The kind is the Plan's name."""
    submissions = []
    for n in range(num_runs):
        kind = n % 10
        seconds = 0.2 + (n % 7) / 6 * (longest_s - 0.2)
        plan, inputs = {
            0: (_SLEEP, {"n": n, "seconds": seconds}),
            1: (_SLEEP, {"n": n, "seconds": seconds}),
            2: (_MAP, {"items": [n, n + 1, n + 2, n + 3]}),
            3: (_RETRY, {}),
            4: (_FAIL, {}),
            5: (_WHEN, {"n": n}),
        }.get(kind, (_CHAIN3, {"n": n}))
        submissions.append(Submission(run_id=f"{plan.name}-{uuid4().hex}", plan=plan, inputs=inputs))
    return submissions


def check_sound(submission: Submission, view: RunView, events: list[RunEvent]) -> None:
    """Check one Run of a mixed load: the right end, the right output, and a story that tells it once."""
    name, given = submission.plan.name, submission.inputs
    where = f"{submission.run_id}: {view.status} {view.error} {view.output}"
    if name == "fail":
        assert view.status is RunStatus.FAILED, where
        assert view.error is not None and view.error.code == "EXECUTION_FAILED", where
        assert view.error.message == "as planned", where
    else:
        assert view.status is RunStatus.SUCCEEDED, where
    if name in {"chain3", "when"}:
        assert view.output == given, where
    elif name == "sleep":
        assert view.output == {"n": given["n"]}, where
    elif name == "map":
        assert view.output == [{"x": x, "i": i} for i, x in enumerate(given["items"])], where
    elif name == "retry":
        assert view.output["succeeded_on_attempt"] >= 2, where
    check_story(view, events)


def check_story(view: RunView, events: list[RunEvent]) -> None:
    """Check that the events have no gap, one end, and one end of each step that agrees with the record."""
    where = f"{view.run_id}: {[(e.seq, e.type, e.step, e.item, e.attempt) for e in events]}"
    assert [event.seq for event in events] == list(range(1, len(events) + 1)), where
    assert [event.type for event in events if event.type in _TERMINAL] == [f"run.{view.status}"], where
    assert events[-1].type == f"run.{view.status}", where
    succeeded = Counter((e.step, e.item) for e in events if e.type == "step.succeeded")
    expected = Counter((s.name, s.item) for s in view.steps if s.status == "succeeded")
    assert succeeded == expected, where
    for step in view.steps:
        attempts = [
            e.attempt
            for e in events
            if e.type == "step.started" and (e.step, e.item) == (step.name, step.item)
        ]
        assert attempts == list(range(1, step.attempt + 1)), where
