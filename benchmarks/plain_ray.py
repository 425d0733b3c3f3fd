"""The baselines: the same work as a good simple Ray program does it, one actor call a step, nothing durable.

Three natural ways to write it, none of which survives the death of any process in it:

- driver: the driver makes one actor call a step and gets each result before it makes the next;
- references: the driver makes one actor call a step and hands the reference on, unfetched;
- coordinator: an actor makes the calls; the driver hands it all inputs in one call and gets all results.

The actor is asynchronous and takes 1,000 calls at a time, as the agents of the service do.
"""

from __future__ import annotations

import asyncio
from typing import Any

import ray

from benchmarks.work import INPUT, percentile, seconds_of

__all__ = ["WAYS", "PlainRay"]

WAYS = ("driver", "references", "coordinator")
"""The first is what figures are judged against: one actor call a step, each result fetched."""

_CONCURRENCY = 1000


class _Agent:
    async def noop(self, value: Any) -> Any:
        return value

    async def join(self, *values: Any) -> Any:
        return {f"k{number}": value["name"] for number, value in enumerate(values)}


class _Coordinator:
    def __init__(self, agent: Any) -> None:
        self._agent = agent

    async def chains(self, inputs: list[Any]) -> list[Any]:
        return await asyncio.gather(*[_chain(self._agent, value) for value in inputs])

    async def fans(self, inputs: list[Any]) -> list[Any]:
        return await asyncio.gather(*[_fan(self._agent, value) for value in inputs])


async def _chain(agent: Any, value: Any) -> Any:
    for _ in range(3):
        value = await agent.noop.remote(value)
    return value


async def _fan(agent: Any, value: Any) -> Any:
    outputs = await asyncio.gather(*[agent.noop.remote(value) for _ in range(16)])
    return await agent.join.remote(*outputs)


class PlainRay:
    """An agent actor and a coordinator actor in the Ray this process is attached to."""

    def __init__(self) -> None:
        self._agent: Any = ray.remote(_Agent).options(num_cpus=0, max_concurrency=_CONCURRENCY).remote()
        self._coordinator: Any = (
            ray.remote(_Coordinator).options(num_cpus=0, max_concurrency=_CONCURRENCY).remote(self._agent)
        )
        for way in WAYS:
            self.chain3_per_s(way, 50)
            self.fan16_per_s(way, 5)

    def close(self) -> None:
        """End the actors."""
        for actor in (self._coordinator, self._agent):
            ray.kill(actor)

    def chain3_per_s(self, way: str, count: int) -> float:
        """Measure chains a second, `count` of them at once."""
        return count / seconds_of(lambda: self._chains(way, [INPUT] * count))

    def fan16_per_s(self, way: str, count: int) -> float:
        """Measure fans a second, `count` of them at once."""
        return count / seconds_of(lambda: self._fans(way, [INPUT] * count))

    def chain3_p50_ms(self, way: str, count: int) -> float:
        """Measure the median of one chain at a time."""
        return percentile([seconds_of(lambda: self._one_chain(way)) * 1000 for _ in range(count)], 50)

    def _one_chain(self, way: str) -> Any:
        noop = self._agent.noop
        if way == "driver":
            value = INPUT
            for _ in range(3):
                value = ray.get(noop.remote(value))
            return value
        return self._chains(way, [INPUT])

    def _chains(self, way: str, inputs: list[Any]) -> Any:
        noop = self._agent.noop
        if way == "references":
            return ray.get([noop.remote(noop.remote(noop.remote(value))) for value in inputs])
        if way == "coordinator":
            return ray.get(self._coordinator.chains.remote(inputs))

        async def drive() -> list[Any]:
            return await asyncio.gather(*[_chain(self._agent, value) for value in inputs])

        return asyncio.run(drive())

    def _fans(self, way: str, inputs: list[Any]) -> Any:
        agent = self._agent
        if way == "references":
            return ray.get(
                [agent.join.remote(*[agent.noop.remote(value) for _ in range(16)]) for value in inputs]
            )
        if way == "coordinator":
            return ray.get(self._coordinator.fans.remote(inputs))

        async def drive() -> list[Any]:
            return await asyncio.gather(*[_fan(self._agent, value) for value in inputs])

        return asyncio.run(drive())
