"""Pools and limits that a test declares at run time, and how they stand, as operators see them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec

from cluster import placement_groups
from cluster.model.plan import Submission
from cluster.scheduling.pools import PoolSpec
from cluster.store import keys
from cluster.store.capacity import CapacitySnapshot, PoolState
from tests.integration.plans import one_step
from tests.integration.running_service import RunningService, eventually

__all__ = ["DeclaredPools"]

_AGENTS = ("tests.integration.agents_for_tests:held",)
_DEFAULTS: dict[str, Any] = {"agents": _AGENTS, "num_cpus": 0.0, "concurrency": 1, "idle_timeout_s": 600.0}


class DeclaredPools:
    """Declares pools whose Steps hold their slots until a gate opens."""

    def __init__(self, service: RunningService, folder: Path) -> None:
        self.service = service
        self._folder = folder
        self._names: set[str] = set()
        self._limits: set[str] = set()

    def declare(self, name: str, **fields: Any) -> None:
        """Declare a pool, or change it, and wait until the scheduler has taken it up."""
        spec = msgspec.convert({"name": name, **_DEFAULTS, **fields}, PoolSpec)
        self._names.add(name)
        self.service.redis.hset(keys.POOLS, name, msgspec.json.encode(spec))
        eventually(lambda: self.pool(name).spec == spec, f"pool {name} is as declared")

    def limit(self, key: str, **fields: Any) -> None:
        """Limit a key."""
        self._limits.add(key)
        self.service.redis.hset(keys.LIMITS, key, msgspec.json.encode(fields))

    def remove_all(self) -> None:
        """Take everything back that was declared here; replicas end."""
        for name in self._names:
            self.service.redis.hset(keys.POOLS, name, b"")
        for key in self._limits:
            self.service.redis.hset(keys.LIMITS, key, b"")
        eventually(lambda: not self._names & {each.name for each in self.snapshot().pools}, "pools are gone")
        eventually(
            lambda: not self._limits & {each.key for each in self.snapshot().limits}, "limits are gone"
        )
        self.service.redis.delete(keys.POOLS, keys.LIMITS)

    # -- how it stands

    def snapshot(self) -> CapacitySnapshot:
        raw: Any = eventually(lambda: self.service.redis.get(keys.CAPACITY), "the scheduler tells how it is")
        return msgspec.json.decode(raw, type=CapacitySnapshot)

    def pool(self, name: str) -> PoolState:
        found = [each for each in self.snapshot().pools if each.name == name]
        return found[0] if found else PoolState(name, PoolSpec(name="", agents=()))

    def await_replicas(self, name: str, num: int, within_s: float = 30.0) -> list[str]:
        """Wait until so many replicas of a pool are ready, and name them."""
        try:
            return eventually(
                lambda: len(found := self.service.replicas(name)) == num and (sorted(found) or ["none"]),
                f"{num} replicas of {name}",
                within_s,
            )
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.snapshot()} {placement_groups.list_groups()}") from error

    def gpus_of(self, replicas: Sequence[str]) -> list[list[str]]:
        """Tell which GPUs replicas have."""
        told = self.service.scheduler_status()["replicas"]
        return [told[name]["gpus"] for name in replicas]

    # -- work

    @contextmanager
    def work(self, capability: str, num: int = 1, **fields: Any) -> Iterator[list[str]]:
        """Let Steps wait or work until the block ends; then they all succeed, or were cancelled."""
        gate = self._folder / f"gate-{uuid4().hex}"
        plan = one_step(capability, {"gate": str(gate), "log": str(self.log)}, **fields.pop("step", {}))
        run_ids = self.service.submit_all(
            [Submission(run_id=uuid4().hex, plan=plan, inputs={}, **fields) for _ in range(num)]
        )
        try:
            yield run_ids
        finally:
            gate.touch()
        for record in self.service.await_ended(run_ids).values():
            assert record.status in ("succeeded", "cancelled"), record.error

    @property
    def log(self) -> Path:
        """A line for each Step that began."""
        return self._folder / "log"

    def num_begun(self) -> int:
        """Count the Steps that began."""
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0
