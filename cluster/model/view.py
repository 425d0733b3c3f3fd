"""How a Run looks to a reader: values for dialects to render, read from the store without any actor."""

from __future__ import annotations

from typing import Any

import msgspec

from cluster.lifecycle.run_status import RunStatus
from cluster.lifecycle.step_status import StepStatus

__all__ = ["Failure", "RunEvent", "RunSummary", "RunView", "StepView"]


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why something failed: code, one sentence, whether a retry may help."""

    code: str
    message: str
    retryable: bool = False


class StepView(msgspec.Struct, frozen=True, kw_only=True):
    """One StepRun. Instants are Unix seconds (UTC), None where not reached.

    Attributes:
        item: Index of the mapped item, or -1 for the Step itself.
        attempt: 0 before the first dispatch.
        progress: 0 to 1.
        output: Decoded JSON (may hold blob references), None unless succeeded.
        story: How attempts were lost, oldest first.
        answers: What it waits for; empty where it does not wait for an answer.
        question: What is shown to who answers, decoded JSON.
    """

    name: str
    capability: str
    item: int
    status: StepStatus
    attempt: int
    failures: int
    agent_id: str
    progress: float
    started_at: float | None
    ended_at: float | None
    error: Failure | None
    output: Any
    story: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    question: Any = None


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A Run in a list. Instants are Unix seconds (UTC).

    Attributes:
        state: Where a Run of a Blueprint is, or was last; "" in all others.
        phase: A value of Phase while such a Run goes on, else "".
    """

    run_id: str
    tenant: str
    dialect: str
    plan_name: str
    status: RunStatus
    priority: int
    created_at: float
    started_at: float | None
    ended_at: float | None
    progress: float
    error: Failure | None
    metadata: dict[str, Any]
    state: str = ""
    phase: str = ""


class RunView(RunSummary, frozen=True, kw_only=True):
    """A Run with its Steps.

    Attributes:
        steps: In Plan order, items after their Step.
        output: The Run's output, decoded; None unless succeeded.
        retry_count: Failed attempts that were tried again, over all Steps.
        cancel_reason: What the client said, or "".
        plan: The Plan as JSON-able builtins.
        inputs: Of a Run of a Blueprint: what it was given; None in others.
        data: What such a Run has gathered.
        webhook_url: Told when the Run ends; None for nobody.
    """

    steps: tuple[StepView, ...]
    output: Any
    retry_count: int
    cancel_reason: str
    plan: Any
    inputs: Any = None
    data: Any = None
    webhook_url: str | None = None


class RunEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that happened to a Run, in the order of `seq` (1, 2, 3, … without gaps).

    Attributes:
        seq: Position in the Run's stream; the SSE event id.
        type: A value of RunEventKind or StepEventKind.
        at: Unix seconds (UTC).
        status: The Run's status after it.
        step: The Step's name, "" for the Run itself.
        item: Index of the mapped item, or -1.
        attempt: The attempt it speaks of, 0 where none.
        agent_id: Who did it, "" where nobody.
        progress: The whole Run's progress after it, 0 to 1.
        step_progress: The Step's own progress, 0 to 1.
        message: One line for people.
        error: Set on failures.
    """

    seq: int
    type: str
    at: float
    status: RunStatus
    step: str = ""
    item: int = -1
    attempt: int = 0
    agent_id: str = ""
    progress: float = 0.0
    step_progress: float = 0.0
    message: str = ""
    error: Failure | None = None
