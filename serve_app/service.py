"""Every use case of the edge, once, for all dialects and transports: submit, read, follow, command, health.

It works for a Principal and sees only that tenant's Runs. It refuses to know formats: dialects parse and
render.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar
from uuid import uuid4

import msgspec
import orjson

from actors.webhooks import check_webhook
from cluster.errors import InvalidInput, NotFound, PayloadTooLarge, StepError, Unavailable
from cluster.lifecycle.run_status import RunStatus
from cluster.model.blob_reference import is_json_media_type, is_reference, resolve
from cluster.model.compiled import CompiledPlan
from cluster.model.plan import Json, Submission
from cluster.model.run_id import client_id, stored_id
from cluster.model.submission_rules import (
    check_metadata_size,
    check_priority,
    check_submission,
    encode_value,
)
from cluster.model.view import RunEvent, RunSummary, RunView
from cluster.store.blobs import BlobStore
from cluster.store.capacity import CapacitySnapshot, CapacityStore
from cluster.store.large_inputs import offload_inputs
from cluster.store.run_store import RunStore
from serve_app.blueprint_shelf import BlueprintShelf
from serve_app.worker_service import WorkerService

if TYPE_CHECKING:
    from cluster.scheduling.reasons import StepWait
    from cluster.settings import Settings
    from serve_app.auth import Principal

__all__ = ["Accepted", "Health", "RunRequest", "RunService"]

_R = TypeVar("_R", bound=RunSummary)
_HASH_IN_THREAD_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What a dialect makes of a client's request. See Submission for the fields of the same name.

    Attributes:
        plan: Checked Plan.
        run_id: None for one of ours.
    """

    plan: CompiledPlan
    dialect: str
    inputs: Json = field(default_factory=dict)
    run_id: str | None = None
    priority: int = 50
    timeout_s: float | None = None
    after: tuple[str, ...] = ()
    webhook_url: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    webhook_words: dict[str, str] = field(default_factory=dict)


class Accepted(NamedTuple):
    """Answer to a submission; `status` is what the Run begins with, `created` just now or before."""

    run_id: str
    created: bool
    status: RunStatus
    estimated_ms: int


class Health(NamedTuple):
    """How the service is; counts are over all tenants and 0 while the store is away."""

    is_healthy: bool
    version: str
    uptime_s: float
    num_waiting: int
    num_active: int
    num_submitted: int
    num_succeeded: int
    num_failed: int
    num_cancelled: int


class RunService:
    """One per process.

    Attributes:
        blueprints: Those that are served; empty until they are loaded.
    """

    def __init__(self, store: RunStore, settings: Settings) -> None:
        self.store = store
        self.settings = settings
        self._capacity = CapacityStore(store.redis)
        self._blobs = BlobStore(settings.blobs_dir)
        self.blueprints = BlueprintShelf(settings)
        self.workers = WorkerService(store.redis, settings)
        self._started_at = time.monotonic()
        self.version = _version()

    @classmethod
    def connect(cls, settings: Settings) -> Self:
        """Open the service on its store."""
        return cls(RunStore.connect(settings), settings)

    async def close(self) -> None:
        """Close the store."""
        await self.blueprints.close()
        await self.workers.close()
        await self.store.close()

    # -- submit

    async def submit(self, principal: Principal, request: RunRequest) -> Accepted:
        """Accept a Run durably; what can be wrong with a request is found before anything is stored.

        Raises:
            InvalidInput: An id, a number, a value or the webhook's address cannot be used.
            PayloadTooLarge: The metadata does not fit inline.
            AlreadyExists, LimitExceeded, Unavailable: See RunStore.submit.
        """
        check_submission(request)
        raw_inputs = encode_value(request.inputs, "inputs", sort_keys=True)
        raw_metadata = encode_value(request.metadata, "metadata", sort_keys=True)
        limit_bytes = self.settings.inline_limit_bytes
        check_metadata_size(raw_metadata, limit_bytes)
        if request.webhook_url is not None:
            await check_webhook(request.webhook_url, self.settings.egress_allow)
        inputs = request.inputs
        if len(raw_inputs) > limit_bytes:
            inputs = await asyncio.to_thread(offload_inputs, inputs, self._blobs, limit_bytes)
        if len(raw_inputs) > _HASH_IN_THREAD_BYTES:
            digest = await asyncio.to_thread(_digest, principal.tenant, request, raw_inputs, raw_metadata)
        else:
            digest = _digest(principal.tenant, request, raw_inputs, raw_metadata)
        submission = Submission(
            run_id=stored_id(principal.tenant, request.run_id or uuid4().hex),
            plan=request.plan.plan,
            inputs=inputs,
            tenant=principal.tenant,
            priority=request.priority,
            timeout_s=request.timeout_s,
            after=tuple(stored_id(principal.tenant, other) for other in request.after),
            dialect=request.dialect,
            metadata=request.metadata,
            webhook_url=request.webhook_url,
            submitted_by=principal.subject,
            webhook_words=request.webhook_words if request.webhook_url is not None else {},
            digest=digest,
        )
        outcome = await self.store.submit(submission, request.plan)
        estimated_ms = await self.store.estimate_ms(request.plan.plan)
        status = RunStatus.PENDING if request.after else RunStatus.QUEUED
        return Accepted(client_id(outcome.run_id), outcome.created, status, estimated_ms)

    # -- read

    async def get(self, principal: Principal, run_id: str) -> RunView:
        """Read a Run; a large output is fetched from the blob store.

        Raises:
            NotFound: Unknown, expired, or another tenant's.
        """
        view = _as_known(await self.store.get(stored_id(principal.tenant, run_id), principal.tenant))
        if is_reference(view.output) and is_json_media_type(view.output.get("media_type")):
            output = await asyncio.to_thread(self._read_output, view.output)
            view = msgspec.structs.replace(view, output=output)
        return view

    def _read_output(self, reference: dict[str, Any]) -> Json:
        """Read an output that went to the blob store whole; references further inside stay what they are."""
        try:
            return resolve(reference, self._blobs.read)
        except (NotFound, StepError, PayloadTooLarge):
            return reference

    async def summary(self, principal: Principal, run_id: str) -> RunSummary:
        """Read a Run without its Steps.

        Raises:
            NotFound: Unknown, expired, or another tenant's.
        """
        return _as_known(await self.store.summary(stored_id(principal.tenant, run_id), principal.tenant))

    async def list_runs(
        self,
        principal: Principal,
        *,
        statuses: Sequence[RunStatus] = (),
        dialect: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> tuple[list[RunSummary], str | None]:
        """List Runs, newest first, with the cursor of the next page.

        Raises:
            InvalidInput: `limit` is not in 1 to 1,000, or the cursor is not one of ours.
        """
        if not 1 <= limit <= 1000:
            raise InvalidInput("limit: must be 1 to 1000", field="limit")
        runs, next_cursor = await self.store.list_runs(
            principal.tenant, statuses=statuses, dialect=dialect, limit=limit, cursor=cursor
        )
        return [_as_known(run) for run in runs], next_cursor

    async def follow(
        self, principal: Principal, run_id: str, after_seq: int = 0
    ) -> tuple[RunSummary, AsyncIterator[RunEvent]]:
        """Return how the Run stands and its events after `after_seq`: the past, then the present, to its end.

        Raises:
            NotFound: Unknown, expired, or another tenant's.
        """
        summary = await self.summary(principal, run_id)
        return summary, self.store.follow_known(stored_id(principal.tenant, run_id), after_seq)

    async def why(self, principal: Principal, run_id: str) -> tuple[RunSummary, list[StepWait]]:
        """Return how the Run stands, and why Steps of it wait, by the decisions that let them.

        Raises:
            NotFound: Unknown, expired, or another tenant's.
            Unavailable: The Run's owner gave no answer in time.
        """
        summary = await self.summary(principal, run_id)
        if summary.status.is_terminal:
            return summary, []
        waits = await self.store.why(stored_id(principal.tenant, run_id), principal.tenant)
        snapshot = await self._capacity.snapshot() if waits else None
        if snapshot is None:
            return summary, waits
        return summary, [_whole(wait, snapshot, time.time()) for wait in waits]

    # -- command

    async def cancel(
        self, principal: Principal, run_id: str, reason: str = "", command_id: str | None = None
    ) -> None:
        """End a Run on request.

        Raises:
            NotFound, Conflict, Unavailable: See RunStore.command.
        """
        await self._command(principal, run_id, "cancel", command_id, reason=reason[:2000])

    async def pause(self, principal: Principal, run_id: str, command_id: str | None = None) -> None:
        """Let the Steps in flight finish and start no other; raises as `cancel`."""
        await self._command(principal, run_id, "pause", command_id)

    async def resume(self, principal: Principal, run_id: str, command_id: str | None = None) -> None:
        """Go on after `pause`; raises as `cancel`."""
        await self._command(principal, run_id, "resume", command_id)

    async def set_priority(
        self, principal: Principal, run_id: str, priority: int, command_id: str | None = None
    ) -> None:
        """Change the priority, 0 to 100; raises as `cancel`.

        Raises:
            InvalidInput: The priority is out of range.
        """
        check_priority(priority)
        await self._command(principal, run_id, "priority", command_id, priority=priority)

    async def answer(
        self,
        principal: Principal,
        run_id: str,
        answer: str,
        *,
        step: str = "",
        data: Json = None,
        command_id: str | None = None,
    ) -> None:
        """Answer a Step that waits; without its name, the only one that does. Raises as `cancel`.

        Raises:
            InvalidInput: The Step does not know the answer, or the data cannot be used.
            PayloadTooLarge: The data does not fit inline.
        """
        check_metadata_size(encode_value(data, "data"), self.settings.inline_limit_bytes)
        await self._command(
            principal,
            run_id,
            "answer",
            command_id,
            step=step[:300],
            answer=answer[:200],
            data=data,
            by=principal.subject,
        )

    async def _command(
        self, principal: Principal, run_id: str, kind: str, command_id: str | None, **arguments: Any
    ) -> None:
        if command_id is not None:
            # Ids are the client's own: one tenant's must not answer for another's, nor one Run's for another.
            command_id = hashlib.sha256(
                f"{principal.tenant}\0{run_id}\0{kind}\0{command_id}".encode()
            ).hexdigest()
        name = stored_id(principal.tenant, run_id)
        await self.store.command(name, principal.tenant, kind, command_id=command_id, **arguments)

    # -- health

    @property
    def uptime_s(self) -> float:
        """Seconds since this process began to serve."""
        return time.monotonic() - self._started_at

    async def health(self) -> Health:
        """Look whether the store answers, and count."""
        uptime_s = self.uptime_s
        try:
            if await self.store.ping():
                totals = await self.store.totals()
                snapshots = await self.store.metrics_snapshots()
                num_active = min(_num_running(snapshots), totals.unfinished)
                return Health(
                    True,
                    self.version,
                    uptime_s,
                    totals.unfinished - num_active,
                    num_active,
                    totals.submitted,
                    totals.succeeded,
                    totals.failed,
                    totals.cancelled,
                )
        except Unavailable:
            pass
        return Health(False, self.version, uptime_s, 0, 0, 0, 0, 0, 0)


def _as_known(run: _R) -> _R:
    """Give a Run the id that its client knows."""
    run_id = client_id(run.run_id)
    return run if run_id == run.run_id else msgspec.structs.replace(run, run_id=run_id)


def _digest(tenant: str, request: RunRequest, raw_inputs: bytes, raw_metadata: bytes) -> str:
    """Hash what makes two requests the same; key order and how the client wrote them do not."""
    hasher = hashlib.blake2b(digest_size=16)
    rest = (tenant, request.dialect, request.priority, request.timeout_s, request.after, request.webhook_url)
    for part in (request.plan.raw, raw_inputs, raw_metadata, orjson.dumps(rest)):
        hasher.update(b"%d:" % len(part))
        hasher.update(part)
    return hasher.hexdigest()


def _num_running(snapshots: Sequence[dict[str, Any]]) -> int:
    """Add up what the orchestrators told in the last seconds; a Run that is only loaded may wait."""
    gauges = [snapshot.get("gauges", {}) for snapshot in snapshots]
    return sum(int(each.get("runs_running", each.get("steps_running", 0))) for each in gauges)


def _version() -> str:
    try:
        return version("tutti")
    except PackageNotFoundError:
        return "0"


def _whole(wait: StepWait, snapshot: CapacitySnapshot, now: float) -> StepWait:
    reason = snapshot.whole(wait.reason)
    if reason is wait.reason:
        return wait
    return msgspec.structs.replace(wait, reason=reason, sentence=reason.sentence(now))
