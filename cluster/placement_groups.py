"""The only door to `ray.util.placement_group`. It reserves, asks and frees; it decides nothing.

Every group is detached and carries a name that begins with `tutti:`, so that the ledger and Ray can be
compared after any process has died.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

__all__ = [
    "Group",
    "find",
    "free",
    "free_named",
    "list_groups",
    "list_named",
    "on_node",
    "reserve",
    "strategy_in",
    "wait_reserved",
]

_PREFIX = "tutti:"
_NODE_LABEL = "ray.io/node-id"
_FIRST_PAUSE_S = 0.005
_LONGEST_PAUSE_S = 0.25


class Group(NamedTuple):
    """A living group of ours.

    Attributes:
        state: Ray's word: PENDING, PREPARED, CREATED, RESCHEDULING.
        bundles: What was asked for.
        nodes: Where each bundle lies, Ray's node id; "" where it lies nowhere yet.
    """

    state: str
    bundles: tuple[dict[str, float], ...]
    nodes: tuple[str, ...]

    @property
    def is_placed(self) -> bool:
        """Whether all bundles are there."""
        return self.state == "CREATED"


def on_node(node_id: str) -> dict[str, str]:
    """Make the selector that pins a bundle to a node."""
    return {_NODE_LABEL: node_id}


def reserve(
    name: str,
    bundles: Sequence[Mapping[str, float]],
    strategy: str = "PACK",
    selectors: Sequence[Mapping[str, str]] = (),
) -> PlacementGroup:
    """Ask for bundles, all or none; returns at once, see wait_reserved.

    Args:
        name: Unique among living groups.
        bundles: Resources by name.
        strategy: PACK, STRICT_PACK, SPREAD or STRICT_SPREAD.
        selectors: Labels that the node of each bundle must have; empty for anywhere.
    """
    return placement_group(
        [dict(bundle) for bundle in bundles],
        strategy=strategy,
        name=_PREFIX + name,
        lifetime="detached",
        bundle_label_selector=[dict(each) for each in selectors] or None,
    )


async def wait_reserved(group: PlacementGroup, timeout_s: float) -> bool:
    """Wait until the group is placed; False when it is not within `timeout_s`, or was freed.

    It asks again and again: `PlacementGroup.ready` would start a worker process in the group only to answer.
    """
    pause_s = _FIRST_PAUSE_S
    deadline = time.monotonic() + timeout_s
    while True:
        state = placement_group_table(group).get("state")
        if state == "CREATED":
            return True
        if state == "REMOVED" or time.monotonic() > deadline:
            return False
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)


def strategy_in(
    group: PlacementGroup, bundle: int = 0, *, with_children: bool = False
) -> PlacementGroupSchedulingStrategy:
    """Make the scheduling strategy of an actor that lives in a bundle.

    Args:
        group: Where.
        bundle: Which of its bundles.
        with_children: What the actor starts lives in the group too, in any bundle.
    """
    return PlacementGroupSchedulingStrategy(
        placement_group=group,
        placement_group_bundle_index=bundle,
        placement_group_capture_child_tasks=with_children,
    )


def free(group: PlacementGroup) -> None:
    """Give a group back; actors in it die."""
    remove_placement_group(group)


def list_groups() -> dict[str, Group]:
    """Return living groups of ours by name, without prefix."""
    table: dict[str, Any] = placement_group_table()
    found: dict[str, Group] = {}
    for row in table.values():
        name = row.get("name", "")
        if name.startswith(_PREFIX) and row.get("state") != "REMOVED":
            order = sorted(row["bundles"])
            nodes = row.get("bundles_to_node_id", {})
            found[name.removeprefix(_PREFIX)] = Group(
                row["state"],
                tuple(row["bundles"][index] for index in order),
                tuple(nodes.get(index, "") for index in order),
            )
    return found


def list_named() -> dict[str, str]:
    """Return living groups of ours: name (without prefix) to state."""
    return {name: group.state for name, group in list_groups().items()}


def find(name: str) -> PlacementGroup | None:
    """Find a living group of ours by name."""
    try:
        return ray.util.get_placement_group(_PREFIX + name)
    except ValueError:
        return None


def free_named(name: str) -> None:
    """Give a group back by name; an unknown one is no error."""
    group = find(name)
    if group is not None:
        remove_placement_group(group)
