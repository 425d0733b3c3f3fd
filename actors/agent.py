"""The agent interface: what a plain Python class or function must look like to do a Step's work.

    from actors.agent import agent

    @agent("word_count")
    def word_count(inputs):
        return {"words": len(inputs["text"].split())}

    @agent("slow_count")
    class SlowCount:
        async def execute(self, inputs, context):
            await context.progress(0.5, "half way")
            return {"words": len(inputs["text"].split())}

An agent gets JSON and returns JSON: NaN, infinity or keys that are no strings fail its Step. It may be sync
(it runs in a thread and never blocks its replica's loop) or async; it may take `context` or leave it out. It
refuses to know about Redis, Runs of others, or Ray.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from cluster.model.plan import Json

__all__ = ["AgentContext", "AgentDeclaration", "agent", "declaration_of"]

T = TypeVar("T", bound=Callable[..., Any])
_MARK = "__tutti_agent__"


class AgentContext(Protocol):
    """What an agent may ask for while it works on one attempt of one Step.

    Attributes:
        run_id: The Run.
        step: The Step's name.
        item: Index of the mapped item, or -1.
        attempt: 1-based; a repeated execution has a higher one.
        tenant: Whose Run it is.
        metadata: The Run's metadata, JSON object.
        deadline_at: Unix seconds after which the result will not be accepted, or None.
        idempotency_key: The same for every attempt of this StepRun; for calls to systems that deduplicate.
        input_dirs: Folders below which `file:` inputs may lie.
        egress_allow: CIDR blocks that may be called although they are private.
        code_dir: Folder of the code of blueprints, by digest.
    """

    run_id: str
    step: str
    item: int
    attempt: int
    tenant: str
    metadata: dict[str, Any]
    deadline_at: float | None
    idempotency_key: str
    input_dirs: tuple[str, ...]
    egress_allow: tuple[str, ...]
    code_dir: str

    async def progress(self, fraction: float, message: str = "") -> None:
        """Tell how far the work is.

        Args:
            fraction: 0 to 1; any number.
            message: One line for people.

        Raises:
            TypeError, OverflowError: `fraction` is no number.
        """

    def report_progress(self, fraction: float, message: str = "") -> None:
        """The same from a sync agent's thread."""

    @property
    def cancelled(self) -> bool:
        """Whether the result is no longer wanted. Sync agents look at it between pieces of work."""

    def read_blob(self, reference: dict[str, Any]) -> bytes:
        """Read the bytes behind a blob reference (`{"$blob": digest, "size_bytes": …, "media_type": …,
        "seal": …}`). One without its seal, which somebody else made up, is refused.
        """

    def write_blob(self, content: bytes, media_type: str) -> dict[str, Any]:
        """Store bytes, synced, and return a reference that may stand anywhere in a result."""


class AgentDeclaration:
    """What `@agent` notes about a class or function.

    Attributes:
        capabilities: Names it serves.
        target: The class or function itself.
    """

    def __init__(self, capabilities: tuple[str, ...], target: Callable[..., Any]) -> None:
        self.capabilities = capabilities
        self.target = target

    def bind(self) -> Callable[[Json, str, AgentContext], Awaitable[Json] | Json]:
        """Make the callable a replica uses: `execute(inputs, capability, context)`, sync or async.

        A class is created once per replica; its `execute` is called for each Step.
        """
        executor: Callable[..., Any] = self.target
        if inspect.isclass(self.target):
            instance: Any = self.target()
            executor = instance.execute
        parameters = list(inspect.signature(executor).parameters.values())[1:]
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        wanted = {
            name for name in ("context", "capability") if takes_all or name in {p.name for p in parameters}
        }

        def call(inputs: Json, capability: str, context: AgentContext) -> Any:
            extra = {"context": context, "capability": capability}
            return executor(inputs, **{name: extra[name] for name in wanted})

        call.is_async = inspect.iscoroutinefunction(executor)  # type: ignore[attr-defined]
        return call


def agent(*capabilities: str) -> Callable[[T], T]:
    """Declare a class with `execute(inputs[, context][, capability])`, or a function, as an agent.

    Args:
        capabilities: One or more names it serves.
    """
    if not capabilities:
        raise ValueError("an agent serves at least one capability")

    def mark(target: T) -> T:
        setattr(target, _MARK, AgentDeclaration(tuple(capabilities), target))
        return target

    return mark


def declaration_of(target: object) -> AgentDeclaration:
    """Return what `@agent` noted.

    Raises:
        TypeError: The object was never declared as an agent.
    """
    declaration = getattr(target, _MARK, None)
    if not isinstance(declaration, AgentDeclaration):
        raise TypeError(f'{target!r} is not an agent: decorate it with @agent("capability")')
    return declaration
