"""The Plan: an immutable DAG of Steps, and the request that makes a Run of it.

A Plan is data. It refuses to hold code, clocks or statuses. `compiled.py` checks it and prepares it for the
engine.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from cluster.model.blueprint import Blueprint

__all__ = [
    "OUTSIDE_PREFIX",
    "Json",
    "Plan",
    "ResourceRequest",
    "RetryPolicy",
    "Step",
    "Submission",
    "SuccessRule",
]

OUTSIDE_PREFIX = "worker:"
"""Capabilities that begin so are served by workers outside the cluster, never by a pool: Steps that ask for
one wait until a worker takes them.
"""

Json = Any
"""Any JSON value. References are objects of the form {"$ref": "steps.fetch.output.rows"} (see
`references`).
"""


class SuccessRule(StrEnum):
    """When a Run of the Plan counts as succeeded."""

    ALL = "all"
    """Every Step must succeed, save those marked optional; the first failure ends the Run."""
    ANY = "any"
    """Failures are tolerated; the Run fails only if no Step succeeded."""


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Exponential backoff with full jitter, for retryable errors only.

    The delay before retry n (1-based) is uniform in [0, min(max_delay_s, initial_delay_s *
    multiplier**(n-1))].
    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    max_retries: int = 3
    initial_delay_s: float = 0.5
    max_delay_s: float = 30.0
    multiplier: float = 2.0


class ResourceRequest(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """What the replica that executes must have at least. None means: whatever the pool gives."""

    num_cpus: float | None = None
    num_gpus: float | None = None
    memory_bytes: int | None = None


class Step(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One node of the DAG.

    Attributes:
        name: Unique in the Plan, `[A-Za-z0-9_-]{1,128}`.
        capability: What it needs from an agent ("data_ingest").
        inputs: JSON handed to the agent after its references are resolved.
        needs: Names of Steps that must end first; Steps named by references are added by themselves.
        when: Condition (see `references.Condition`); false skips the Step.
        map: A list, or a reference to one: the Step runs once for each item (`{"$ref": "item"}`, `{"$ref":
            "index"}`) and its output is the list of outputs in order.
        retry: Backoff for retryable errors.
        timeout_s: Limit of one attempt in seconds, > 0; None means the setting `step_timeout_s`.
        optional: A failure does not fail the Run; dependents see null.
        resources: What the replica that executes it must have; the smallest pool that has it is taken.
        model: The model it works with, "" for none: replicas that have it loaded are preferred.
        demands: What else matters to who chooses an outside worker (`scheduling/worker_demands.py`).
        keys: Concurrency and rate keys of the user's own, `[A-Za-z0-9_.:-]{1,128}`, at most 8: what is
            declared for them limits all Steps that name them, whatever their Run.
        answers: Words that end it from outside. A Step with some asks for no slot: it waits for one of them,
            or for `timeout_s`, which it may leave out to wait for ever. Its inputs are for who answers; its
            output is `{"answer": …, "data": …, "by": …}`.
    """

    name: str
    capability: str
    inputs: Json = msgspec.field(default_factory=dict)
    needs: tuple[str, ...] = ()
    when: Json = None
    map: Json = None
    retry: RetryPolicy = RetryPolicy()
    timeout_s: float | None = None
    optional: bool = False
    resources: ResourceRequest = ResourceRequest()
    model: str = ""
    demands: dict[str, Any] = msgspec.field(default_factory=dict)
    keys: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()


class Plan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """An immutable DAG of Steps, or a Blueprint that makes Steps as it goes.

    Attributes:
        name: For people; 1 to 200 characters.
        steps: At least one, at most 10,000; none where there is a Blueprint.
        output: JSON with references, the Run's output. None: the output of the only last Step, or an object
            by name where several are last.
        success: When the Run counts as succeeded.
        blueprint: A state machine, expanded; its Run's output is the data it has gathered.
    """

    name: str
    steps: tuple[Step, ...] = ()
    output: Json = None
    success: SuccessRule = SuccessRule.ALL
    blueprint: Blueprint | None = None


class Submission(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The request that makes a Run: everything a client decides, nothing the engine does.

    Attributes:
        run_id: The store's name (`model/run_id.py`) of `[A-Za-z0-9_.:-]{1,200}`; the idempotency key too.
        plan: The Plan.
        inputs: The Run's inputs (`{"$ref": "inputs.x"}`).
        tenant: Whose Run it is.
        priority: 0 to 100, higher first.
        timeout_s: Limit from submission to end in seconds; None means none.
        after: Ids of Runs of the tenant that must succeed before this one starts; each must exist already.
        dialect: The dialect it came through; GET and DELETE answer in it.
        metadata: The dialect's own notes, opaque to the core. JSON object.
        webhook_url: Told when the Run ends; None for nobody.
        submitted_by: Subject of the Principal.
        webhook_words: The dialect's words for fields, events and statuses of the webhook's body.
        digest: Hash of the request; the same run_id with another digest is refused.
    """

    run_id: str
    plan: Plan
    inputs: Json = msgspec.field(default_factory=dict)
    tenant: str = "default"
    priority: int = 50
    timeout_s: float | None = None
    after: tuple[str, ...] = ()
    dialect: str = "runs"
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    webhook_url: str | None = None
    submitted_by: str = ""
    webhook_words: dict[str, str] = msgspec.field(default_factory=dict)
    digest: str = ""
