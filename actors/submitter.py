"""How Runs of Python drivers are accepted: by the same rules as at the edge, and without a hop where the
partition is owned here.

An id of ours is new for certain, so that its Run can be written with its first transitions, in one commit. An
id of the driver's own may have been given before, anywhere: it goes through the store.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import msgspec

from cluster.errors import InvalidInput, StaleOwner, TuttiError, Unavailable
from cluster.model.compiled import CompiledPlan, compile_plan
from cluster.model.plan import Json, Submission
from cluster.model.run_id import stored_id
from cluster.model.submission_rules import (
    check_metadata_size,
    check_priority,
    check_submission,
    check_tenant,
    encode_value,
)
from cluster.store import keys
from cluster.store.large_inputs import offload_inputs

if TYPE_CHECKING:
    from actors.driver import Driver
    from cluster.store.blobs import BlobStore
    from cluster.store.run_store import RunStore

__all__ = ["Submitter"]

_ACCEPT_TIMEOUT_S = 10.0
_CHUNK = 200
_OPTIONS = frozenset(Submission.__struct_fields__) - {"plan", "inputs", "digest", "dialect"}


class Submitter:
    """Accepts what Python drivers submit."""

    def __init__(self, store: RunStore, driver: Driver, blobs: BlobStore) -> None:
        self._store, self._driver, self._blobs = store, driver, blobs
        self._settings = driver.settings

    async def submit(self, plan: Any, inputs: Json, options: dict[str, Any]) -> str:
        """Accept one Run durably and return its id; raises as RunStore.submit."""
        submission, compiled = await self._prepare(plan, inputs, options)
        if submission.run_id:
            return (await self._store.submit(submission, compiled)).run_id
        if submission.after:
            await self._store.check_predecessors([submission])
        submission = self._named(submission)
        async with self._store.room.of(submission.tenant, 1):
            accepted = self._driver.intake.create(submission, compiled, time.time())
            if accepted is not None:
                try:
                    await _within_time(accepted)
                except StaleOwner:
                    accepted = None  # another owner took the partition over: the store knows the way to it
            if accepted is None:
                await self._store.submit(submission, compiled, has_room=True)
        return submission.run_id

    async def submit_many(
        self, plans: Sequence[Any], inputs: Sequence[Json], options: dict[str, Any]
    ) -> list[str]:
        """Accept many; raises as RunStore.submit, for the first refused."""
        prepared: list[tuple[Submission, CompiledPlan]] = []
        for position, (plan, each_inputs) in enumerate(zip(plans, inputs, strict=True)):
            prepared.append(await self._prepare(plan, each_inputs, options))
            if position % _CHUNK == _CHUNK - 1:
                await asyncio.sleep(0)
        if any(submission.after for submission, _ in prepared):
            await self._store.check_predecessors([submission for submission, _ in prepared])
        async with AsyncExitStack() as taken:
            for tenant, num_runs in Counter(submission.tenant for submission, _ in prepared).items():
                await taken.enter_async_context(self._store.room.of(tenant, num_runs))
            run_ids, through_store, pending = await self._create(prepared)
            for submission, accepted in pending:
                try:
                    await _within_time(accepted)
                except StaleOwner:
                    through_store.append(submission)
            outcomes = await self._store.submit_many(through_store, has_room=True) if through_store else ()
        for outcome in outcomes:
            if isinstance(outcome, TuttiError):
                raise outcome
        return run_ids

    async def _create(
        self, prepared: list[tuple[Submission, CompiledPlan]]
    ) -> tuple[list[str], list[Submission], list[tuple[Submission, asyncio.Future[None]]]]:
        """Begin what can begin here, a slice at a time so that commits and replicas go on meanwhile."""
        run_ids: list[str] = []
        through_store: list[Submission] = []
        pending: list[tuple[Submission, asyncio.Future[None]]] = []
        for position, (unnamed, compiled) in enumerate(prepared):
            accepted = None
            submission = unnamed if unnamed.run_id else self._named(unnamed)
            if not unnamed.run_id:
                accepted = self._driver.intake.create(submission, compiled, time.time())
            if accepted is None:
                through_store.append(submission)
            else:
                pending.append((submission, accepted))
            run_ids.append(submission.run_id)
            if position % _CHUNK == _CHUNK - 1:
                await asyncio.sleep(0)
        return run_ids, through_store, pending

    async def _prepare(
        self, plan: Any, inputs: Json, options: dict[str, Any]
    ) -> tuple[Submission, CompiledPlan]:
        if isinstance(plan, Submission):
            compiled = compile_plan(plan.plan)
            fields = {name: getattr(plan, name) for name in Submission.__struct_fields__}
        else:
            if unknown := options.keys() - _OPTIONS:
                raise InvalidInput(f"unknown options: {', '.join(sorted(unknown))}")
            compiled = compile_plan(plan)
            fields = {"run_id": "", "submitted_by": "driver", "inputs": {} if inputs is None else inputs}
            fields |= options
        submission = _converted({**fields, "plan": compiled.plan})
        check_tenant(submission.tenant)
        if submission.run_id or submission.after or submission.timeout_s is not None:
            submission = _checked(submission)
        else:
            check_priority(submission.priority)
        raw_inputs = encode_value(submission.inputs, "inputs")
        limit_bytes = self._settings.inline_limit_bytes
        if submission.metadata:
            check_metadata_size(encode_value(submission.metadata, "metadata"), limit_bytes)
        if submission.webhook_url is not None:
            from actors.webhooks import check_webhook  # heavy, and seldom used here

            await check_webhook(submission.webhook_url, self._settings.egress_allow)
        if len(raw_inputs) > limit_bytes:
            slim = await asyncio.to_thread(offload_inputs, submission.inputs, self._blobs, limit_bytes)
            submission = msgspec.structs.replace(submission, inputs=slim)
        return submission, compiled

    def _named(self, submission: Submission) -> Submission:
        """Give an id whose partition is owned here, so that the Run needs no hop."""
        own = self._driver.partitions
        run_id = stored_id(submission.tenant, uuid4().hex)
        for _ in range(16):
            if not own or keys.partition_of(run_id, self._settings.num_partitions) in own:
                break
            run_id = stored_id(submission.tenant, uuid4().hex)
        return msgspec.structs.replace(submission, run_id=run_id)


async def _within_time(accepted: asyncio.Future[None]) -> None:
    try:
        async with asyncio.timeout(_ACCEPT_TIMEOUT_S):
            await accepted
    except TimeoutError:
        message = "the store cannot be reached; the run may be accepted yet"
        raise Unavailable(message, retry_after_s=1.0) from None


def _checked(submission: Submission) -> Submission:
    """Check ids and numbers, and name the Runs as the store does; drivers may have given either name.

    Raises:
        InvalidInput: See check_submission.
    """
    prefix = stored_id(submission.tenant, "")
    short = msgspec.structs.replace(
        submission,
        run_id=submission.run_id.removeprefix(prefix) or "unnamed",
        after=tuple(other.removeprefix(prefix) for other in submission.after),
    )
    check_submission(short)
    return msgspec.structs.replace(
        submission,
        run_id=prefix + short.run_id if submission.run_id else "",
        after=tuple(prefix + other for other in short.after),
    )


def _converted(fields: dict[str, Any]) -> Submission:
    """Make a Submission of fields that may have any type: Python code may hand in what no JSON could."""
    try:
        return msgspec.convert(fields, Submission)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$")
        field = path.strip("`.") or None
        raise InvalidInput(f"{field}: {text}" if field else text, field=field) from None
