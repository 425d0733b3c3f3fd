"""The agent that calls the handlers of blueprints: each from the very text that its job began with.

What a handler raises is tried again; what it returns is its status and what is gathered. A value that its
annotation does not allow is the fault of who gave it, and never tried again.
"""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from typing import Any

import msgspec

from actors.agent import AgentContext, agent
from actors.blueprint import HANDLER_CAPABILITY, Handler, Outcome
from actors.blueprint_files import CodeArchive
from cluster.errors import StepError, TuttiError

__all__ = ["BlueprintHandler"]

_BAD_INPUT = "CONTRACT_VIOLATION"


@agent(HANDLER_CAPABILITY)
class BlueprintHandler:
    """Sync: handlers run in the replica's threads, where one that hangs costs the replica its life."""

    def __init__(self) -> None:
        self._archives: dict[str, CodeArchive] = {}

    def execute(self, inputs: Any, context: AgentContext) -> dict[str, Any]:
        """Call a handler.

        Args:
            inputs: What `actors.blueprint.Handler.inputs` refers to, with `blueprint`, `state` and `code`.
            context: Of the attempt.

        Returns:
            `{"status": …, "data": …}`.

        Raises:
            StepError: The handler raised (to be tried again), or what it was given is wrong.
        """
        handler = self._find(inputs, context)
        values = _values(handler, inputs, context)
        try:
            returned = handler.function(**values)
            if inspect.isawaitable(returned):
                returned = asyncio.run(_awaited(returned))
        except StepError:
            raise
        except Exception as error:
            name = handler.function.__name__
            raise StepError(f"handler {name}: {type(error).__name__}: {error}", retryable=True) from error
        if isinstance(returned, Outcome):
            return {"status": returned.status, "data": msgspec.to_builtins(returned.data)}
        return {"status": "success", "data": msgspec.to_builtins(returned)}

    def _find(self, inputs: Any, context: AgentContext) -> Handler:
        try:
            code, name, state = inputs["code"], inputs["blueprint"], inputs["state"]
        except (KeyError, TypeError):
            raise StepError("only steps of blueprints can be worked on here", _BAD_INPUT) from None
        archive = self._archives.setdefault(context.code_dir, CodeArchive(Path(context.code_dir)))
        try:
            return archive.blueprints(str(code))[str(name)].handlers[str(state)]
        except TuttiError as error:
            raise StepError(error.message, retryable=True) from error
        except KeyError:
            raise StepError(f"blueprint {name} has no handler for the state {state}", _BAD_INPUT) from None
        except Exception as error:
            raise StepError(f"blueprint {name}: {type(error).__name__}: {error}", retryable=True) from error


async def _awaited(returned: Any) -> Any:
    return await returned


def _values(handler: Handler, inputs: dict[str, Any], context: AgentContext) -> dict[str, Any]:
    values: dict[str, Any] = dict(inputs["values"])
    gathered = inputs.get("data") or {}
    values.update({name: gathered[name] for name in inputs.get("optional", ()) if name in gathered})
    at_call = {"state": inputs["state"], "attempt": context.attempt, "context": context}
    values.update({name: value for name, value in at_call.items() if name in handler.names})
    for name, kind in handler.types.items():
        if name in values and name not in at_call:
            try:
                values[name] = msgspec.convert(values[name], kind)
            except msgspec.ValidationError as error:
                raise StepError(f"handler {handler.function.__name__}: {name}: {error}", _BAD_INPUT) from None
    return values
