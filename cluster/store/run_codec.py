"""How Runs are written into Redis hashes and read back: JSON throughout, so that redis-cli shows it all."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec
import orjson

from cluster.engine import GrowingRun, Growth, Run, RunHeader, RunRecord, StepRecord, load_run, new_run
from cluster.engine.records import header_of, initial_record
from cluster.errors import StepError
from cluster.lifecycle.run_status import RunEventKind, RunStatus
from cluster.lifecycle.step_status import StepStatus
from cluster.model.compiled import CompiledPlan, compile_plan, decode_plan
from cluster.model.plan import Submission
from cluster.model.view import Failure, RunEvent, RunSummary, RunView, StepView

__all__ = [
    "Creation",
    "EncodedSubmission",
    "created_run",
    "decode_events",
    "decode_header",
    "decode_record",
    "decode_run",
    "encode_events",
    "encode_growth",
    "encode_record",
    "encode_step",
    "encode_submission",
    "failure_decoder",
    "field_of",
    "summary_of",
    "unit_of_field",
    "view_of",
]

_encoder = msgspec.json.Encoder()
_headers = msgspec.json.Decoder(RunHeader)
_records = msgspec.json.Decoder(RunRecord)
_steps = msgspec.json.Decoder(StepRecord)
_growths = msgspec.json.Decoder(Growth)
_events = msgspec.json.Decoder(list[RunEvent])
failure_decoder = msgspec.json.Decoder(Failure)

encode_events = _encoder.encode
decode_events = _events.decode
encode_record = _encoder.encode
encode_step = _encoder.encode
encode_growth = _encoder.encode
decode_header = _headers.decode
decode_record = _records.decode


class EncodedSubmission(msgspec.Struct, frozen=True):
    """A Submission as the arguments of submit.lua, but for the number of Runs."""

    run_id: str
    digest: str
    header: bytes
    plan: bytes
    inputs: bytes
    record: bytes
    event: bytes
    tenant: str
    created_at: float
    dialect: str

    @property
    def size_bytes(self) -> int:
        """Bytes that go into the Run's hash."""
        return len(self.header) + len(self.plan) + len(self.inputs)


def encode_submission(
    submission: Submission, now: float, compiled: CompiledPlan | None = None
) -> EncodedSubmission:
    """Encode a Submission accepted at `now`.

    Raises:
        InvalidPlan: The Plan breaks a rule.
    """
    compiled = compiled or compile_plan(submission.plan)
    inputs = _encoder.encode(submission.inputs)
    record = initial_record(submission, now)
    event = RunEvent(seq=1, type=RunEventKind.SUBMITTED, at=now, status=record.status)
    return EncodedSubmission(
        submission.run_id,
        submission.digest or _digest_of(submission, compiled.raw, inputs),
        _encoder.encode(header_of(submission, now)),
        compiled.raw,
        inputs,
        _encoder.encode(record),
        encode_events([event]),
        submission.tenant,
        now,
        submission.dialect,
    )


class Creation(NamedTuple):
    """What is written of a new Run beside what changes."""

    digest: str
    header: bytes
    first_event: RunEvent


def created_run(submission: Submission, compiled: CompiledPlan, now: float) -> tuple[Run, Creation]:
    """Make the Run of a Submission accepted at `now` in memory, and what a commit writes of it."""
    inputs = _encoder.encode(submission.inputs)
    header, record = header_of(submission, now), initial_record(submission, now)
    event = RunEvent(seq=1, type=RunEventKind.SUBMITTED, at=now, status=record.status)
    digest = submission.digest or _digest_of(submission, compiled.raw, inputs)
    return new_run(header, record, compiled, inputs), Creation(digest, _encoder.encode(header), event)


def _digest_of(submission: Submission, plan: bytes, inputs: bytes) -> str:
    """Tell requests apart that name no digest of their own, by everything a client decides."""
    others = (
        submission.tenant,
        submission.priority,
        submission.timeout_s,
        submission.after,
        submission.metadata,
        submission.webhook_url,
    )
    return blake2b(b"\0".join((plan, inputs, _encoder.encode(others))), digest_size=16).hexdigest()


def field_of(kind: str, step: int, item: int) -> str:
    """Name the hash field of a StepRun: kind "s" for its record, "r" for its result."""
    return f"{kind}:{step}" if item < 0 else f"{kind}:{step}:{item}"


def unit_of_field(field: str) -> tuple[int, int]:
    """Return (step, item) of a field that field_of named."""
    _kind, step, *item = field.split(":")
    return int(step), int(item[0]) if item else -1


def decode_run(fields: Mapping[bytes, bytes]) -> Run:
    """Rebuild a Run from its hash."""
    records: dict[tuple[int, int], StepRecord] = {}
    results: dict[tuple[int, int], bytes] = {}
    growths: dict[int, Growth] = {}
    for name, value in fields.items():
        if name.startswith(b"s:"):
            records[unit_of_field(name.decode())] = _steps.decode(value)
        elif name.startswith(b"r:"):
            results[unit_of_field(name.decode())] = value
        elif name.startswith(b"g:"):
            growths[int(name[2:])] = _growths.decode(value)
    header = _headers.decode(fields[b"header"])
    record = _records.decode(fields[b"record"])
    plan, inputs = decode_plan(fields[b"plan"]), fields[b"inputs"]
    return load_run(header, record, plan, inputs, records, results, [growths[n] for n in sorted(growths)])


def summary_of(header: RunHeader, record: RunRecord) -> RunSummary:
    """Render a Run for a list."""
    return RunSummary(
        run_id=header.run_id,
        tenant=header.tenant,
        dialect=header.dialect,
        plan_name=header.plan_name,
        status=record.status,
        priority=record.priority,
        created_at=header.created_at,
        started_at=record.started_at,
        ended_at=record.ended_at,
        progress=record.progress,
        error=record.error,
        metadata=header.metadata,
        state=record.state,
        phase=record.phase,
    )


def view_of(run: Run) -> RunView:
    """Render a Run with its Steps."""
    summary = summary_of(run.header, run.record)
    output = None
    if run.record.status is RunStatus.SUCCEEDED:
        try:
            output = orjson.loads(run.render_output())
        except StepError:
            output = None  # the engine has checked it once; a Plan from another version may read differently
    return RunView(
        **{name: getattr(summary, name) for name in RunSummary.__struct_fields__},
        steps=tuple(_step_views(run)),
        output=output,
        retry_count=run.record.retry_count,
        cancel_reason=run.record.cancel_reason,
        plan=orjson.loads(run.plan.raw),
        inputs=orjson.loads(run.inputs) if isinstance(run, GrowingRun) else None,
        data=run.scopes[""].data if isinstance(run, GrowingRun) else None,
        webhook_url=run.header.webhook_url,
    )


def _step_views(run: Run) -> list[StepView]:
    views = []
    for index, step_run in enumerate(run.steps):
        units = [(-1, step_run), *enumerate(step_run.items or ())]
        step = run.plan.steps[index].step
        for item, each in units:
            views.append(
                StepView(
                    name=step.name,
                    capability=step.capability,
                    item=item,
                    status=_shown_status(run, each.status, each.remaining),
                    attempt=each.attempt,
                    failures=each.failures,
                    agent_id=each.agent_id,
                    progress=each.share_done if each.status is StepStatus.MAPPING else each.progress,
                    started_at=each.started_at,
                    ended_at=each.ended_at,
                    error=each.error,
                    output=None if each.output is None else orjson.loads(each.output),
                    story=each.story,
                    answers=step.answers if each.status is StepStatus.WAITING else (),
                    question=_question_of(run, index) if each.status is StepStatus.WAITING else None,
                )
            )
    return views


def _question_of(run: Run, index: int) -> Any:
    try:
        return orjson.loads(run.render_inputs(index, -1))
    except StepError:
        return None  # who answers can do so without


def _shown_status(run: Run, status: StepStatus, remaining: int) -> StepStatus:
    if status is not StepStatus.BLOCKED:
        return status
    if run.record.status.is_terminal:
        return StepStatus.CANCELLED
    return StepStatus.BLOCKED if remaining or run.record.waiting_for else StepStatus.READY
