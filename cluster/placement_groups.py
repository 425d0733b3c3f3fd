"""The only door to `ray.util.placement_group`. It reserves, asks and frees; it decides nothing.

Every group is detached and carries a name that begins with `tutti:`, so that the ledger and Ray can be
compared after any process has died.
"""

from __future__ import annotations

import asyncio
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

__all__ = ["fits_cluster", "free", "free_named", "list_named", "reserve", "strategy_in", "wait_reserved"]

_PREFIX = "tutti:"


def reserve(name: str, bundles: list[dict[str, float]], strategy: str = "PACK") -> PlacementGroup:
    """Ask for bundles, all or none; returns at once, see wait_reserved."""
    return placement_group(bundles, strategy=strategy, name=_PREFIX + name, lifetime="detached")


async def wait_reserved(group: PlacementGroup, timeout_s: float) -> bool:
    """Wait until the group is placed; False when it is not within `timeout_s`."""
    try:
        async with asyncio.timeout(timeout_s):
            await group.ready()
    except TimeoutError:
        return False
    except RayError:
        return False
    return True


def strategy_in(group: PlacementGroup, bundle: int = 0) -> PlacementGroupSchedulingStrategy:
    """Make the scheduling strategy of an actor that lives in a bundle."""
    return PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=bundle)


def free(group: PlacementGroup) -> None:
    """Give a group back; actors in it die."""
    remove_placement_group(group)


def list_named() -> dict[str, str]:
    """Return living groups of ours: name (without prefix) to state."""
    table: dict[str, Any] = placement_group_table()
    return {
        row["name"].removeprefix(_PREFIX): row["state"]
        for row in table.values()
        if row.get("name", "").startswith(_PREFIX) and row.get("state") != "REMOVED"
    }


def free_named(name: str) -> None:
    """Give a group back by name; an unknown one is no error."""
    try:
        remove_placement_group(ray.util.get_placement_group(_PREFIX + name))
    except ValueError:
        return


def fits_cluster(bundle: dict[str, float]) -> bool:
    """Whether some node is large enough for the bundle, busy or not."""
    return any(
        node["Alive"] and all(node["Resources"].get(key, 0.0) >= value for key, value in bundle.items())
        for node in ray.nodes()
    )
