"""How outside workers of several releases word things: what they tell of themselves, and their results.

All forms that were seen are understood, and what is not understood is kept and ignored. It refuses to decide
anything: a profile is for the board, a result for the core.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from cluster.errors import InvalidInput
from cluster.model.worker_result import FAILURE, WorkerResult
from cluster.scheduling.matching import WorkerOffer

__all__ = ["named_leases", "profile_of", "result_of"]

_NAME = re.compile(r"[A-Za-z0-9_.:/@+-]{1,200}")
_TAKING_NOTHING = ("busy", "offline", "draining")
_MAX_NAMES = 1000
_MAX_RUNNING = 1000
_MAX_TEXT = 4000


def profile_of(worker_id: str, document: dict[str, Any]) -> WorkerOffer:
    """Read what the board must know of a worker."""
    resources = _object(document.get("resources"))
    capabilities = _object(document.get("capabilities"))
    gpu = _object(resources.get("gpu_info") or document.get("gpu_info"))
    skills = document.get("supported_tasks") or document.get("supported_skills")
    costs = document.get("cost_per_skill") or capabilities.get("cost_per_skill")
    installed = document.get("installed_models") or capabilities.get("installed_models")
    hot = [*_names(document.get("hot_cache")), *_names(document.get("hot_skills"))]
    most = document.get("max_concurrent_tasks", resources.get("max_concurrent_tasks"))
    return WorkerOffer(
        worker_id=worker_id,
        capabilities=frozenset(_names(skills)),
        gpu_model=str(gpu.get("model") or "")[:200],
        gpu_memory_gb=_number(gpu.get("vram_gb")),
        num_cpus=_number(resources.get("cpu_cores")),
        models=frozenset(_names(installed)),
        warm_models=frozenset(hot),
        max_running=min(max(int(_number(most)), 1), _MAX_RUNNING) if most is not None else _MAX_RUNNING,
        is_busy=document.get("status") in _TAKING_NOTHING,
        cost_by_capability={
            name: _number(cost) for name, cost in _object(costs).items() if _NAME.fullmatch(name)
        },
    )


def named_leases(document: dict[str, Any]) -> list[str] | None:
    """List the tasks that a heartbeat says the worker works on; None where it does not say."""
    current = document.get("current_tasks")
    if not isinstance(current, list):
        return None
    found = []
    for each in current:
        name = each.get("task_id") if isinstance(each, dict) else each
        if isinstance(name, str):
            found.append(name)
    return found


def result_of(body: dict[str, Any]) -> WorkerResult:
    """Read a result, nested below `result` or beside the ids.

    Raises:
        InvalidInput: Its status is no text.
    """
    result = body.get("result", body)
    if not isinstance(result, dict):
        return WorkerResult(data=result)
    status = result.get("status") or "success"
    if not isinstance(status, str) or len(status) > 200:
        raise InvalidInput("status: must be a short text", field="status")
    code, message = "", ""
    error = result.get("error")
    if isinstance(error, dict):
        code, message = str(error.get("code") or "")[:200], str(error.get("message") or "")
    elif error is not None:
        message = str(error)
    if not message and status == FAILURE:
        message = str(result.get("error_message") or "")
    return WorkerResult(status, result.get("data"), code, message[:_MAX_TEXT])


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: object) -> float:
    """Read a number that is not negative; 0 for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return 0.0
    return max(float(value), 0.0)


def _names(value: object) -> Iterable[str]:
    """Read names from strings or objects with `name`."""
    found = []
    for each in value[:_MAX_NAMES] if isinstance(value, list) else ():
        name = each.get("name") if isinstance(each, dict) else each
        if isinstance(name, str) and _NAME.fullmatch(name):
            found.append(name)
    return found
