"""What workers of several releases say is understood, and what is odd does no harm."""

from __future__ import annotations

import pytest

from cluster.errors import InvalidInput
from cluster.model.worker_result import WorkerResult
from serve_app.worker_forms import named_leases, profile_of, result_of


def test_profile_reads_resources_costs_and_models_wherever_they_stand() -> None:
    profile = profile_of(
        "w1",
        {
            "supported_skills": [{"name": "echo"}, "draw"],
            "resources": {
                "cpu_cores": 8,
                "gpu_info": {"model": "NVIDIA A100", "vram_gb": 80},
                "max_concurrent_tasks": 3,
            },
            "capabilities": {"cost_per_skill": {"echo": 0.5}},
            "installed_models": [{"name": "llama", "version": "3"}],
            "hot_skills": ["whisper"],
            "status": "busy",
        },
    )
    assert profile.capabilities == {"echo", "draw"}
    assert (profile.gpu_model, profile.gpu_memory_gb, profile.num_cpus) == ("NVIDIA A100", 80.0, 8.0)
    assert profile.cost_by_capability == {"echo": 0.5}
    assert (profile.models, profile.warm_models) == ({"llama"}, {"whisper"})
    assert profile.max_running == 3
    assert profile.is_busy


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"supported_tasks": "echo", "resources": 7, "capabilities": [], "cost_per_skill": "free"},
        {"resources": {"gpu_info": "big", "cpu_cores": "many", "max_concurrent_tasks": None}},
        {"max_concurrent_tasks": float("inf"), "installed_models": {"a": 1}, "hot_cache": [None, {}, 3]},
        {"supported_tasks": ["a\0b", "", "x" * 300], "max_concurrent_tasks": -5},
    ],
)
def test_odd_documents_make_a_profile_that_serves_nothing(document: dict[str, object]) -> None:
    profile = profile_of("w1", document)
    assert profile.capabilities == frozenset()
    assert profile.max_running >= 1


@pytest.mark.parametrize(
    ("body", "result"),
    [
        ({"result": {"status": "success", "data": 1}}, WorkerResult("success", 1)),
        ({"status": "done", "data": {"x": 1}}, WorkerResult("done", {"x": 1})),
        ({"result": {}}, WorkerResult()),
        ({"result": "text"}, WorkerResult(data="text")),
        (
            {"result": {"status": "failure", "error": {"code": "C", "message": "m"}}},
            WorkerResult("failure", None, "C", "m"),
        ),
        ({"status": "failure", "error": "no"}, WorkerResult("failure", None, "", "no")),
        ({"result": {"status": "failure", "error": ["odd"]}}, WorkerResult("failure", None, "", "['odd']")),
    ],
)
def test_results_are_read_nested_and_flat(body: dict[str, object], result: WorkerResult) -> None:
    assert result_of(body) == result


def test_status_that_is_no_text_is_refused() -> None:
    with pytest.raises(InvalidInput):
        result_of({"status": 5})


@pytest.mark.parametrize(
    ("document", "names"),
    [
        ({}, None),
        ({"current_tasks": 2}, None),
        ({"current_tasks": []}, []),
        ({"current_tasks": ["a", {"task_id": "b"}, {"x": 1}, 7]}, ["a", "b"]),
    ],
)
def test_named_tasks_are_told_from_silence(document: dict[str, object], names: list[str] | None) -> None:
    assert named_leases(document) == names
