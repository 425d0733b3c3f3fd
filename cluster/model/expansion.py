"""Puts sub-blueprints into the Blueprint that runs through them, so that a Run needs no other to go on."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from cluster.errors import InvalidPlan
from cluster.model.blueprint import Blueprint, State, StateKind

__all__ = ["expand"]

_MAX_DEPTH = 7


def expand(blueprint: Blueprint, find: Callable[[str], Blueprint | None]) -> Blueprint:
    """Put the states of sub-blueprints behind the states that name them.

    Args:
        blueprint: As its author wrote it.
        find: Gives a blueprint by name, None where there is none; also as its author wrote it.

    Raises:
        InvalidPlan: A blueprint is not there, or runs through itself.
    """
    return msgspec.structs.replace(blueprint, states=tuple(_expanded(blueprint, find, "", (blueprint.name,))))


def _expanded(
    blueprint: Blueprint, find: Callable[[str], Blueprint | None], scope: str, above: tuple[str, ...]
) -> list[State]:
    states: list[State] = []
    for state in blueprint.states:
        own = _placed(state, scope)
        if state.kind is not StateKind.SUB:
            states.append(own)
            continue
        if state.blueprint in above or len(above) > _MAX_DEPTH:
            raise InvalidPlan(
                f"blueprint {above[0]} runs through itself: {' > '.join((*above, state.blueprint))}"
            )
        inner = find(state.blueprint)
        if inner is None:
            raise InvalidPlan(
                f"blueprint {above[-1]}: there is no blueprint {state.blueprint!r}", field=state.name
            )
        states.append(
            msgspec.structs.replace(own, start=f"{own.name}.{inner.start}", parameters=inner.parameters)
        )
        states += _expanded(inner, find, own.name, (*above, inner.name))
    return states


def _placed(state: State, scope: str) -> State:
    if not scope:
        return state
    return msgspec.structs.replace(
        state,
        name=f"{scope}.{state.name}",
        scope=scope,
        moves=tuple(msgspec.structs.replace(move, to=f"{scope}.{move.to}") for move in state.moves),
    )
