"""The tree of errors: every class of it survives a process boundary and keeps what it was given."""

from __future__ import annotations

import inspect
import pickle
from collections import Counter
from collections.abc import Iterator

import pytest

from cluster import errors
from cluster.errors import FailureCode, InvalidTransition, LimitExceeded, RunFailed, StepError, TuttiError


def tree(root: type[TuttiError] = TuttiError) -> Iterator[type[TuttiError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


def example_of(kind: type[TuttiError]) -> TuttiError:
    if kind is InvalidTransition:
        return InvalidTransition("Run", "queued", "run.resumed")
    return kind("what happened", field="x", limit=3)


@pytest.mark.parametrize("kind", [*tree()], ids=lambda kind: kind.__name__)
def test_every_error_survives_pickling_with_its_attributes(kind: type[TuttiError]) -> None:
    error = example_of(kind)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
    assert copy.code == error.code


@pytest.mark.parametrize("kind", [*tree()], ids=lambda kind: kind.__name__)
def test_every_error_says_when_it_is_raised_and_stands_in_the_drawing(kind: type[TuttiError]) -> None:
    assert kind.__doc__
    assert kind.__doc__.startswith(("Raised when ", "Raised to ", "Raised at ", "Root of ", "What an agent "))
    assert kind.__name__ in errors.__all__
    (line,) = [
        line
        for line in (errors.__doc__ or "").splitlines()
        if line.strip("│├└─ ").split(" ")[0] == kind.__name__
    ]
    own_code = kind not in {TuttiError, StepError, RunFailed}
    assert not own_code or kind.code in line.split()


def test_drawing_names_no_class_that_does_not_exist() -> None:
    drawn = {
        line.strip("│├└─ ").split(" ")[0]
        for line in (errors.__doc__ or "").splitlines()
        if "── " in line or line.startswith("TuttiError")
    }
    assert drawn == {kind.__name__ for kind in tree()}


def test_codes_are_unique_but_where_a_kind_refines_its_parent() -> None:
    codes = Counter(
        kind.code
        for kind in tree()
        if kind.code not in {parent.code for parent in kind.__mro__[1:] if parent in set(tree())}
    )
    shared = {code for code, count in codes.items() if count > 1}
    assert shared <= {FailureCode.EXECUTION_FAILED}, (
        "only StepError and RunFailed carry codes of what they tell"
    )


def test_everything_public_is_listed_and_nothing_else() -> None:
    public = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and value.__module__ == errors.__name__ and not name.startswith("_")
    }
    assert public == set(errors.__all__)


def test_what_a_step_reports_keeps_code_and_retryability_over_a_process_boundary() -> None:
    copy = pickle.loads(
        pickle.dumps(StepError("busy", FailureCode.TIMEOUT, retryable=True, retry_after_s=3.0))
    )
    assert (copy.code, copy.retryable, copy.details["retry_after_s"]) == ("TIMEOUT", True, 3.0)


def test_limits_say_when_to_come_back() -> None:
    assert pickle.loads(pickle.dumps(LimitExceeded("full", 5.0, limit=3))).retry_after_s == 5.0
    assert LimitExceeded("full").retry_after_s == 1.0
