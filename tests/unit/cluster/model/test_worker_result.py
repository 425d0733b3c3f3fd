"""What a result means: outputs, failures that may pass, failures that will not."""

from __future__ import annotations

import pytest

from cluster.model.view import Failure
from cluster.model.worker_result import NOT_RETRYABLE, WorkerResult, meaning_of


@pytest.mark.parametrize("status", ["success", "needs_review", "cancelled"])
def test_statuses_are_outputs_where_moves_go_by_them(status: str) -> None:
    meaning = meaning_of(WorkerResult(status, {"x": 1}), moves_by_status=True)
    assert meaning == b'{"status":"%s","data":{"x":1}}' % status.encode()


def test_work_that_was_called_off_fails_where_nothing_moves_by_status() -> None:
    meaning = meaning_of(WorkerResult("cancelled"), moves_by_status=False)
    assert meaning == Failure("CANCELLED", "called off by its worker")


@pytest.mark.parametrize("code", ["", "TRANSIENT_ERROR", "WHATEVER"])
def test_failures_with_other_codes_may_pass(code: str) -> None:
    meaning = meaning_of(WorkerResult("failure", None, code, "no luck"), moves_by_status=True)
    assert meaning == Failure(code or "EXECUTION_FAILED", "no luck", retryable=True)


@pytest.mark.parametrize("code", sorted(NOT_RETRYABLE))
def test_failures_with_final_codes_do_not(code: str) -> None:
    meaning = meaning_of(WorkerResult("failure", None, code), moves_by_status=False)
    assert isinstance(meaning, Failure)
    assert not meaning.retryable
