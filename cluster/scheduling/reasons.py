"""Why something waits, as data: the decision that lets it wait returns one of these; nobody guesses later.

A reason is written down as it is (msgspec, tagged by `kind`) and said in one sentence when somebody asks. It
holds no statuses and changes nothing.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

__all__ = [
    "AgentsUnavailable",
    "ApprovalMissing",
    "BackingOff",
    "BehindOthers",
    "CapacityShort",
    "DependencyUnfinished",
    "IsolationWanted",
    "LabelMissing",
    "ModelCold",
    "NoPool",
    "NoWorker",
    "NodeTooSmall",
    "OwnerFull",
    "Paused",
    "QuotaReached",
    "RateReached",
    "Reason",
    "ReplicaMissing",
    "StepWait",
    "Waits",
]


class Waits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind"):
    """What all reasons have.

    Attributes:
        until_at: When it will probably end, on the clock of whoever decided; None where nobody can know.
    """

    until_at: float | None = None

    _SENTENCE: ClassVar[str] = ""

    def sentence(self, now: float) -> str:
        """Say it to people.

        Args:
            now: On the same clock as `until_at`.
        """
        text = self._SENTENCE.format(**msgspec.structs.asdict(self))
        if self.until_at is None:
            return f"{text}."
        return f"{text}; about {max(self.until_at - now, 0.0):.3g} s more."


class NoPool(Waits, frozen=True, tag="no_pool"):
    """No pool serves the capability."""

    capability: str
    _SENTENCE: ClassVar[str] = "No pool serves the capability {capability!r}"


class AgentsUnavailable(Waits, frozen=True, tag="agents_unavailable"):
    """The pool is there, its agents do not start."""

    pool: str
    trouble: str
    _SENTENCE: ClassVar[str] = "Pool {pool} has no healthy agent: {trouble}"


class QuotaReached(Waits, frozen=True, tag="quota_reached"):
    """A concurrency key is used up."""

    key: str
    num_used: int
    limit: int
    _SENTENCE: ClassVar[str] = "The limit of {key} is reached: {num_used}/{limit} run"


class RateReached(Waits, frozen=True, tag="rate_reached"):
    """A rate key is used up until `until_at`."""

    key: str
    num: float
    per_s: float
    _SENTENCE: ClassVar[str] = "The rate of {key} is reached: {num:g} in {per_s:g} s"


class BehindOthers(Waits, frozen=True, tag="behind_others"):
    """Others go first."""

    num_ahead: int
    priority: int
    _SENTENCE: ClassVar[str] = "It waits for a free slot behind {num_ahead} others, with priority {priority}"

    def sentence(self, now: float) -> str:
        """Say it to people."""
        text = super().sentence(now)
        return text.replace("behind 0 others", "as the next").replace("behind 1 others", "behind 1 other")


class ModelCold(Waits, frozen=True, tag="model_cold"):
    """The model is being loaded, or will be."""

    model: str
    where: str = ""
    _SENTENCE: ClassVar[str] = "The model {model} is not loaded yet on {where}"


class CapacityShort(Waits, frozen=True, tag="capacity_short"):
    """Nodes could carry it, but are in use.

    Attributes:
        num_bundles: Bundles asked for together.
        missing: What is short: "GPU", "CPU", "GiB of memory", "GiB of GPU memory", a custom resource by its
            name, a node.
        num_missing: How much of it, in the unit that `missing` names.
        strategy: How the bundles may lie.
    """

    num_bundles: int
    missing: str
    num_missing: float
    strategy: str = "PACK"
    _SENTENCE: ClassVar[str] = "A gang of {num_bundles} ({strategy}) is short by {num_missing:.3g} {missing}"

    def sentence(self, now: float) -> str:
        """Say it to people."""
        text = super().sentence(now)
        return text.replace(f"gang of 1 ({self.strategy})", "replica", 1) if self.num_bundles == 1 else text


class LabelMissing(Waits, frozen=True, tag="label_missing"):
    """No living node has the labels."""

    labels: tuple[tuple[str, str], ...]

    def sentence(self, now: float) -> str:
        """Say it to people."""
        return f"No node is labelled {', '.join(f'{key}={value}' for key, value in self.labels)}."


class NodeTooSmall(Waits, frozen=True, tag="node_too_small"):
    """No living node is large enough, even if it were empty."""

    missing: str
    asked: float
    largest: float
    _SENTENCE: ClassVar[str] = (
        "No node is large enough: {asked:.3g} {missing} asked for, the largest has {largest:.3g}"
    )


class DependencyUnfinished(Waits, frozen=True, tag="dependency"):
    """Steps that it needs, or Runs it comes after, have not ended."""

    names: tuple[str, ...]

    def sentence(self, now: float) -> str:
        """Say it to people."""
        return f"It needs {', '.join(self.names)}, not ended yet."


class BackingOff(Waits, frozen=True, tag="backoff"):
    """An attempt failed and is repeated after a pause."""

    num_failures: int
    _SENTENCE: ClassVar[str] = "It is tried again after {num_failures} failed attempts"


class Paused(Waits, frozen=True, tag="paused"):
    """Somebody paused the Run."""

    _SENTENCE: ClassVar[str] = "The Run is paused until it is resumed"


class OwnerFull(Waits, frozen=True, tag="parked"):
    """The Run waits for room in its owner's memory."""

    max_loaded_runs: int
    _SENTENCE: ClassVar[str] = "The Run waits behind the {max_loaded_runs} Runs that its owner looks after"


class ReplicaMissing(Waits, frozen=True, tag="replica_missing"):
    """No replica of the pool is ready; one is being started, or will be. `pool` is "" before it is known."""

    pool: str
    _SENTENCE: ClassVar[str] = "No replica of pool {pool} is ready yet"

    def sentence(self, now: float) -> str:
        """Say it to people."""
        if not self.pool:
            return "The scheduler has not told yet which pools there are."
        return super().sentence(now)


class IsolationWanted(Waits, frozen=True, tag="isolation"):
    """Replicas died under it: it waits to run alone on one, so that no neighbour is blamed."""

    pool: str
    _SENTENCE: ClassVar[str] = (
        "It waits for a replica of pool {pool} of its own, because others died under it"
    )


class ApprovalMissing(Waits, frozen=True, tag="approval"):
    """Somebody must approve."""

    gate: str
    _SENTENCE: ClassVar[str] = "It waits for the approval {gate!r}"


class NoWorker(Waits, frozen=True, tag="no_worker"):
    """No external worker matches, or all that do are busy.

    Attributes:
        num_busy: Workers that match in everything but load.
        unmet: What no worker offers; "" where all that match are busy.
    """

    capability: str
    num_busy: int
    unmet: str = ""

    def sentence(self, now: float) -> str:
        """Say it to people."""
        if self.unmet:
            return f"No worker for {self.capability!r} offers {self.unmet}."
        return f"All {self.num_busy} workers for {self.capability!r} are busy."


Reason = (
    NoPool
    | AgentsUnavailable
    | QuotaReached
    | RateReached
    | BehindOthers
    | ModelCold
    | CapacityShort
    | LabelMissing
    | NodeTooSmall
    | DependencyUnfinished
    | BackingOff
    | Paused
    | OwnerFull
    | ReplicaMissing
    | IsolationWanted
    | ApprovalMissing
    | NoWorker
)
"""Any of them; `msgspec.json.decode(data, type=Reason)` reads one back."""


class StepWait(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a StepRun waits, for readers.

    Attributes:
        step: Name of the Step; "" where the whole Run waits.
        item: Index of the mapped item, or -1.
        reason: From the decision that lets it wait.
        sentence: The same for people.
        until_at: When it will probably end, Unix seconds; None where nobody can know.
        num: StepRuns it speaks for: above 1 for those that are too many to be told one by one.
    """

    step: str
    item: int = -1
    reason: Reason
    sentence: str
    until_at: float | None = None
    num: int = 1
