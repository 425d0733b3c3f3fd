"""The replicas that an orchestrator may use, one link each: as the scheduler lists them, less those that it
does not know to be gone yet.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from actors.replica_link import LinkOwner, ReplicaLink

if TYPE_CHECKING:
    from actors.pool_line import PoolLine
    from actors.pool_table import ReplicaEntry

__all__ = ["ReplicaLinks"]

_STOP_GRACE_S = 5.0


class ReplicaLinks:
    """Links by replica id.

    Args:
        caller: The orchestrator's id.
        owner: Who hears from the links.
    """

    def __init__(self, caller: str, owner: LinkOwner) -> None:
        self.by_id: dict[str, ReplicaLink] = {}
        self._caller, self._owner = caller, owner
        self._dead: dict[str, Any] = {}

    def update(self, entries: tuple[ReplicaEntry, ...], lines: Mapping[str, PoolLine]) -> None:
        """Take the scheduler's list over; one that holds attempts of ours is kept until they have ended."""
        listed = {entry.replica_id: entry for entry in entries}
        # By handle: a scheduler that was restarted may use a name again.
        self._dead = {
            name: h for name, h in self._dead.items() if name in listed and listed[name].handle == h
        }
        for replica_id in self._dead:
            del listed[replica_id]
        for replica_id, entry in listed.items():
            link = self.by_id.get(replica_id)
            if link is None:
                link = self.by_id[replica_id] = ReplicaLink(entry, self._caller, self._owner)
                pool = lines[entry.pool].entry if entry.pool in lines else None
                link.hold_model(pool.spec.model if pool is not None else "")
            else:
                link.slots = entry.slots
        for replica_id, link in list(self.by_id.items()):
            if replica_id not in listed and not link.held and not link.stopping:
                link.close()
                del self.by_id[replica_id]
            elif replica_id not in listed:
                link.slots = 0
        self._group(lines)

    def drop(self, link: ReplicaLink, lines: Mapping[str, PoolLine]) -> None:
        """Forget a replica that is gone, also while the scheduler has not noticed yet and still lists it."""
        self.by_id.pop(link.replica_id, None)
        self._dead[link.replica_id] = link.entry.handle
        self._group(lines)

    def _group(self, lines: Mapping[str, PoolLine]) -> None:
        for line in lines.values():
            line.links = []
        for link in self.by_id.values():
            if link.entry.pool in lines:
                lines[link.entry.pool].links.append(link)

    def check(self, lines: Mapping[str, PoolLine]) -> None:
        """Look for silent and stuck replicas."""
        now = time.monotonic()
        for link in list(self.by_id.values()):
            pool = lines[link.entry.pool].entry if link.entry.pool in lines else None
            link.check(now, pool.stop_grace_s if pool is not None else _STOP_GRACE_S)

    def in_use(self) -> dict[str, int]:
        """Count attempts, by replica."""
        return {
            name: len(link.held) + len(link.stopping) for name, link in self.by_id.items() if not link.lost
        }

    def grants(self) -> dict[str, int]:
        """Tell how many slots the scheduler gave us, by replica."""
        return {name: link.slots for name, link in self.by_id.items() if link.slots}

    def close(self) -> None:
        """Give all links up."""
        for link in self.by_id.values():
            link.close()
