"""How many ingress replicas there are: so many that each has its wanted share of a core to do.

Serve asks the policy about ten times a second and keeps the bounds, the delays and the replicas; here is only
the arithmetic, and the meter in each replica that feeds it. Open event streams count for what they cost, not
for being open. Serve's controller unpickles this module: it imports nothing of ours.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

    from cluster.settings import Settings

__all__ = ["CPU_SHARE", "CpuMeter", "CpuSharePolicy", "autoscaling_of"]

CPU_SHARE = "cpu_share"
"""Name of the metric: CPU seconds that a replica's process uses in a second."""
_DIGITS = 3
_CPUS_FOR_INGRESS = 0.5
_LOOK_BACK_S = 30.0
_UPSCALE_DELAY_S = 15.0
_DOWNSCALE_DELAY_S = 300.0
"""Long: event streams on a replica that ends break, and are taken up again elsewhere."""


class CpuMeter:
    """Tells how much CPU this process has used since it was asked last."""

    def __init__(self) -> None:
        self._asked_at, self._used_s = time.monotonic(), time.process_time()

    def share(self) -> float:
        """Return CPU seconds a second, >= 0; 1.0 is one core, and all that Python code of a process gets."""
        now, used_s = time.monotonic(), time.process_time()
        passed_s, spent_s = now - self._asked_at, used_s - self._used_s
        self._asked_at, self._used_s = now, used_s
        return spent_s / passed_s if passed_s > 0 else 0.0


class CpuSharePolicy:
    """Serve's autoscaling policy.

    Args:
        target: Wanted share of a core for each replica, above 0.
    """

    def __init__(self, target: float) -> None:
        self._target = target

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """Say how many replicas would have the wanted share; without a report, as many as there are to be.

        Returns:
            The number, which Serve rounds up and bounds, and no state.
        """
        share_by_replica = (context.aggregated_metrics or {}).get(CPU_SHARE, {})
        if not share_by_replica:
            return context.target_num_replicas, {}
        # Rounded, or 1.4 / 0.7 could become three replicas.
        return round(sum(share_by_replica.values()) / self._target, _DIGITS), {}


def autoscaling_of(settings: Settings, num_cpus: float) -> dict[str, Any]:
    """Say how Serve is to scale the edge: the fields of its AutoscalingConfig.

    Args:
        settings: The service's.
        num_cpus: CPUs of the cluster, >= 0.
    """
    most = settings.max_ingress or int(num_cpus * _CPUS_FOR_INGRESS)
    return {
        "min_replicas": settings.num_ingress,
        "max_replicas": max(most, settings.num_ingress),
        "look_back_period_s": _LOOK_BACK_S,
        "upscale_delay_s": _UPSCALE_DELAY_S,
        "downscale_delay_s": _DOWNSCALE_DELAY_S,
        "policy": {
            "policy_function": CpuSharePolicy,
            "policy_kwargs": {"target": settings.ingress_cpu_share},
        },
    }
