"""Which of several pools executes a Step. It looks at declarations only: it knows no replicas and no load."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol, TypeVar

from cluster.model.compiled import Wish
from cluster.model.plan import OUTSIDE_PREFIX
from cluster.scheduling.pools import PoolSpec

__all__ = ["Choice", "Offer", "choose_pool"]


class Offer(Protocol):
    """A pool as far as the choice looks at it."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What it serves."""

    @property
    def spec(self) -> PoolSpec:
        """Its declaration."""

    @property
    def trouble(self) -> str:
        """Why it cannot start replicas, "" where it can."""


class Choice(NamedTuple):
    """The decision.

    Attributes:
        pool: Name of the pool; "" where none will do, or none should.
        refusal: Why none will do; "" where one does.
    """

    pool: str
    refusal: str = ""


_O = TypeVar("_O", bound=Offer)


def choose_pool(wish: Wish, offers: Iterable[_O]) -> Choice:
    """Choose the smallest pool that satisfies a wish; of equals the one declared last.

    Pools that cannot start replicas are taken only where no other will do. One that holds the wished model
    goes before one that holds none or several by turns.
    """
    serving = [offer for offer in offers if wish.capability in offer.capabilities]
    if not serving and wish.capability.startswith(OUTSIDE_PREFIX):
        return Choice("")  # no pool's business: it waits until a worker outside takes it
    if not serving:
        return Choice("", f"no pool serves the capability {wish.capability!r}")
    large = [offer for offer in serving if not _missing(wish, offer.spec)]
    if not large:
        missing = "; ".join(f"{offer.name}: {_missing(wish, offer.spec)}" for offer in serving)
        return Choice("", f"no pool that serves {wish.capability!r} is large enough ({missing})")
    fitting = [offer for offer in large if not wish.model or offer.spec.model in ("", wish.model)]
    if not fitting:
        return Choice("", f"no pool that serves {wish.capability!r} holds the model {wish.model!r}")
    ranked = [
        (bool(offer.trouble), offer.spec.model != wish.model, *_size(offer.spec), -position, offer.name)
        for position, offer in enumerate(fitting)
    ]
    return Choice(min(ranked)[-1])


def _size(spec: PoolSpec) -> tuple[float, float, int]:
    """Tell what one replica has: GPUs, CPUs, bytes."""
    return spec.num_gpus * spec.gang_size, spec.num_cpus * spec.gang_size, spec.memory_bytes * spec.gang_size


def _missing(wish: Wish, spec: PoolSpec) -> str:
    """Say what a replica has too little of, "" where it has enough."""
    num_gpus, num_cpus, memory_bytes = _size(spec)
    if wish.num_gpus > num_gpus:
        return f"{num_gpus:g} GPUs of {wish.num_gpus:g}"
    if wish.num_cpus > num_cpus:
        return f"{num_cpus:g} CPUs of {wish.num_cpus:g}"
    if wish.memory_bytes > memory_bytes:
        return f"{memory_bytes} bytes of memory of {wish.memory_bytes}"
    return ""
