"""Reasons are data that survives being written down, and one sentence each."""

from __future__ import annotations

import msgspec
import pytest

from cluster.scheduling import reasons

ALL: list[reasons.Reason] = [
    reasons.NoPool(capability="llm"),
    reasons.AgentsUnavailable(pool="p", trouble="no module m"),
    reasons.QuotaReached(key="tenant:a", num_used=4, limit=4),
    reasons.RateReached(key="mail", num=1, per_s=2, until_at=7.0),
    reasons.BehindOthers(num_ahead=3, priority=50, until_at=9.0),
    reasons.ModelCold(model="llama", where="gpu-1"),
    reasons.CapacityShort(num_bundles=4, missing="GPU", num_missing=1),
    reasons.LabelMissing(labels=(("gpu", "H200"),)),
    reasons.NodeTooSmall(missing="GPU", asked=9, largest=8),
    reasons.DependencyUnfinished(names=("fetch", "run-7")),
    reasons.BackingOff(num_failures=2, until_at=8.0),
    reasons.Paused(),
    reasons.OwnerFull(max_loaded_runs=1000),
    reasons.ReplicaMissing(pool="p"),
    reasons.IsolationWanted(pool="p"),
    reasons.ApprovalMissing(gate="release"),
    reasons.NoWorker(capability="render", num_busy=0, unmet="a GPU H200"),
]


@pytest.mark.parametrize("reason", ALL, ids=lambda reason: type(reason).__name__)
def test_reason_survives_json_and_is_one_sentence(reason: reasons.Reason) -> None:
    data = msgspec.json.encode(reason)
    assert msgspec.json.decode(data, type=reasons.Reason) == reason
    sentence = reason.sentence(5.0)
    assert sentence.endswith(".")
    assert "{" not in sentence


def test_every_reason_is_tried_here() -> None:
    names = set(reasons.__all__) - {"Reason", "StepWait", "Waits"}
    assert {type(reason).__name__ for reason in ALL} == names


def test_estimate_is_part_of_the_sentence() -> None:
    assert ALL[4].sentence(5.0) == (
        "It waits for a free slot behind 3 others, with priority 50; about 4 s more."
    )


def test_wait_of_a_step_survives_json() -> None:
    wait = reasons.StepWait(step="a", item=3, reason=ALL[1], sentence="Because.", num=7)
    assert msgspec.convert(msgspec.json.decode(msgspec.json.encode(wait)), reasons.StepWait) == wait


def test_pool_that_is_not_known_yet_is_not_named() -> None:
    assert "which pools there are" in reasons.ReplicaMissing(pool="").sentence(0)
