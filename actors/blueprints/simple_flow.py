"""The smallest blueprint that does something: two handlers, one after the other, and an end."""

from __future__ import annotations

from typing import Any

from actors.blueprint import Blueprint

__all__ = ["count", "flow", "greet"]

flow = Blueprint("simple_flow", description="Greets and counts; ends by itself.")


@flow.handler("greet", start=True, to={"success": "count"})
def greet(initial_data: dict[str, Any]) -> dict[str, str]:
    """Make a greeting of the name, where there is one."""
    return {"greeting": f"Hello, {initial_data.get('name', 'world')}!"}


@flow.handler("count", to={"success": "finished"})
def count(greeting: str) -> dict[str, int]:
    """Count its letters."""
    return {"letters": sum(each.isalpha() for each in greeting)}


flow.end("finished")
