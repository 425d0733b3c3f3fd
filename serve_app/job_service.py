"""Every use case of jobs, once: Runs of blueprints, people's answers to them, and those in quarantine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from cluster.engine.growing_run import DISCARD, RETRY
from cluster.errors import Conflict, InvalidInput, NotFound, Unauthenticated
from cluster.lifecycle.phase import Phase
from cluster.lifecycle.run_status import RunStatus
from cluster.lifecycle.step_status import StepStatus
from cluster.model.plan import OUTSIDE_PREFIX
from cluster.model.run_id import stored_id
from cluster.store.step_leases import offer_id_of
from serve_app.approval_tokens import ApprovalTokens, Waiting
from serve_app.auth import DEFAULT_TENANT, Principal
from serve_app.service import Accepted, RunRequest

if TYPE_CHECKING:
    from cluster.model.view import RunEvent, RunSummary, RunView, StepView
    from serve_app.blueprint_shelf import BlueprintShelf, ServedBlueprint
    from serve_app.service import RunService

__all__ = ["DIALECT_NAME", "MAX_OFFSET", "JobService", "waiting_step"]

DIALECT_NAME = "jobs"
MAX_OFFSET = 10_000
_PAGE = 1000
_S = TypeVar("_S", bound="RunSummary")


class JobService:
    """One per process.

    Attributes:
        runs: The service beneath.
        shelf: The blueprints.
        tokens: For people without a credential.
    """

    def __init__(self, runs: RunService, shelf: BlueprintShelf) -> None:
        self.runs, self.shelf = runs, shelf
        settings = runs.settings
        self.tokens = ApprovalTokens(settings.webhook_secret or settings.jwt_secret)
        self._is_open = settings.auth == "open"

    async def start(
        self,
        principal: Principal,
        blueprint: ServedBlueprint,
        initial_data: Any,
        *,
        webhook_url: str | None,
        webhook_words: Mapping[str, str],
        tracing_context: Mapping[str, str],
    ) -> Accepted:
        """Create a job.

        Raises:
            InvalidInput: The initial data or the address cannot be used.
            LimitExceeded, Unavailable: See RunService.submit.
        """
        request = RunRequest(
            plan=blueprint.plan,
            dialect=DIALECT_NAME,
            inputs=blueprint.inputs(initial_data),
            webhook_url=webhook_url,
            webhook_words=dict(webhook_words),
            metadata={"blueprint_version": blueprint.digest, "tracing_context": dict(tracing_context)},
        )
        return await self.runs.submit(principal, request)

    async def get(self, principal: Principal, job_id: str) -> RunView:
        """Read a job.

        Raises:
            NotFound: Unknown, expired, another tenant's, or a Run that is none.
        """
        return _job(await self.runs.get(principal, job_id), job_id)

    async def history(self, principal: Principal, job_id: str) -> list[RunEvent]:
        """Read what happened to a job so far; raises as `get`."""
        _job(await self.runs.summary(principal, job_id), job_id)
        return await self.runs.store.events(stored_id(principal.tenant, job_id), principal.tenant)

    async def list_jobs(
        self,
        principal: Principal,
        *,
        kinds: Iterable[tuple[RunStatus, str]] | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> list[RunSummary]:
        """List jobs, newest first.

        Args:
            kinds: Statuses with phases; None for all.
            limit: 1 to 1,000.
            offset: How many to leave out first, 0 to 10,000.

        Raises:
            InvalidInput: A number is out of range.
        """
        if not 1 <= limit <= _PAGE:
            raise InvalidInput(f"limit: must be 1 to {_PAGE}", field="limit")
        if not 0 <= offset <= MAX_OFFSET:
            raise InvalidInput(f"offset: must be 0 to {MAX_OFFSET}", field="offset")
        wanted = None if kinds is None else frozenset(kinds)
        statuses = () if wanted is None else tuple({status for status, _ in wanted})
        found: list[RunSummary] = []
        cursor: str | None = None
        while len(found) < offset + limit:
            page, cursor = await self.runs.list_runs(
                principal, statuses=statuses, dialect=DIALECT_NAME, limit=_PAGE, cursor=cursor
            )
            found += [each for each in page if wanted is None or (each.status, each.phase) in wanted]
            if cursor is None:
                break
        return found[offset : offset + limit]

    async def cancel(self, principal: Principal, job_id: str) -> None:
        """End a job.

        Raises:
            NotFound, Conflict, Unavailable: See RunService.cancel.
        """
        _job(await self.runs.summary(principal, job_id), job_id)
        await self.runs.cancel(principal, job_id)

    def task_id_of(self, principal: Principal, view: RunView, step: StepView) -> str:
        """Name a piece of work as the worker outside that has it, or will have it, knows it; that of an agent
        is its Step's name.
        """
        if not step.capability.startswith(OUTSIDE_PREFIX):
            return step.name
        attempt = step.attempt + (step.status is not StepStatus.RUNNING)
        run_id = stored_id(principal.tenant, view.run_id)
        index = view.steps.index(step)  # a job maps over nothing: its views are its Steps
        return offer_id_of(run_id, index, -1, attempt, self.runs.settings.num_partitions)

    # -- answers

    async def decide(self, principal: Principal, job_id: str, decision: str, data: Any = None) -> None:
        """Answer the approval that a job waits for.

        Raises:
            NotFound: There is no such job.
            Conflict: It waits for none, or somebody else was first.
            InvalidInput: The decision is none of those it waits for.
        """
        view = await self.get(principal, job_id)
        step = waiting_step(view)
        if step is None or view.phase != Phase.PERSON:
            raise Conflict(f"job {job_id} waits for no approval")
        await self.runs.answer(principal, job_id, decision, step=step.name, data=data)

    async def decide_by_token(self, job_id: str, token: str, decision: str, data: Any = None) -> None:
        """Answer an approval without a credential: with its token, in open mode also without one. Raises as
        `decide`.

        Raises:
            Unauthenticated: The token is missing or not this job's.
        """
        if not token:
            if not self._is_open:
                raise Unauthenticated("an approval token is needed: X-Approval-Token, or token in the URL")
            await self.decide(_holder(DEFAULT_TENANT), job_id, decision, data)
            return
        waiting = self.tokens.read(job_id, token)
        principal = _holder(waiting.tenant)
        _job(await self.runs.summary(principal, job_id), job_id)
        await self.runs.answer(principal, job_id, decision, step=waiting.step, data=data)

    def token_of(self, principal: Principal, job_id: str, step: StepView) -> str | None:
        """Make the token for an approval; None where no secret is set."""
        return self.tokens.make(job_id, Waiting(principal.tenant, step.name))

    async def release(self, principal: Principal, job_id: str, *, is_retry: bool) -> None:
        """Let a quarantined job try again what failed, or fail for good.

        Raises:
            NotFound: There is no such job.
            Conflict: It is not in quarantine.
        """
        view = await self.get(principal, job_id)
        step = waiting_step(view)
        if step is None or view.phase != Phase.QUARANTINED:
            raise Conflict(f"job {job_id} is not in quarantine")
        await self.runs.answer(principal, job_id, RETRY if is_retry else DISCARD, step=step.name)


def waiting_step(view: RunView) -> StepView | None:
    """Find the Step of a job that waits for an answer."""
    return next((step for step in reversed(view.steps) if step.status is StepStatus.WAITING), None)


def _holder(tenant: str) -> Principal:
    return Principal("approval-token", tenant, "user")


def _job(found: _S, job_id: str) -> _S:
    if found.dialect != DIALECT_NAME:
        raise NotFound(f"job {job_id} not found")
    return found
