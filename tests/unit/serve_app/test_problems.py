import grpc
import pytest

from cluster.errors import (
    InvalidInput,
    InvalidPlan,
    LimitExceeded,
    NotFound,
    PayloadTooLarge,
    RunFailed,
    TuttiError,
    Unavailable,
)
from serve_app.problems import PROBLEMS, problem_of, wording_of


def _tree(kind):
    return {kind}.union(
        *(_tree(child) for child in kind.__subclasses__() if child.__module__ == "cluster.errors")
    )


def test_table_has_every_class_of_the_tree_and_nothing_else():
    assert set(PROBLEMS) == _tree(TuttiError)


def test_every_grpc_status_exists():
    assert all(hasattr(grpc.StatusCode, problem.grpc_status) for problem in PROBLEMS.values())


@pytest.mark.parametrize(
    ("error", "http_status", "grpc_status"),
    [
        (InvalidPlan("x"), 422, "INVALID_ARGUMENT"),
        (InvalidInput("x", malformed=True), 400, "INVALID_ARGUMENT"),
        (PayloadTooLarge("x"), 413, "RESOURCE_EXHAUSTED"),
        (NotFound("x"), 404, "NOT_FOUND"),
        (LimitExceeded("x"), 429, "RESOURCE_EXHAUSTED"),
        (RunFailed("x", code="TIMEOUT"), 504, "DEADLINE_EXCEEDED"),
    ],
)
def test_statuses_follow_from_class_and_details(error, http_status, grpc_status):
    assert problem_of(error) == (http_status, grpc_status)


def test_class_from_elsewhere_gets_the_statuses_of_its_nearest_ancestor():
    class OddInput(InvalidInput):
        pass

    assert problem_of(OddInput("x")).http_status == 422


def test_our_own_fault_tells_nothing_of_the_inside():
    wording = wording_of(TuttiError("password is 123"))
    assert (wording.code, wording.message) == ("INTERNAL", "internal error")


def test_waiting_time_is_whole_seconds_and_never_zero():
    assert wording_of(Unavailable("x", retry_after_s=0.2)).retry_after_s == 1
    assert wording_of(Unavailable("x", retry_after_s=1.2)).retry_after_s == 2
    assert wording_of(NotFound("x")).retry_after_s is None
