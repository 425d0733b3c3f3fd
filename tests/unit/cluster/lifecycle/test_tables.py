"""The two lifecycle tables: complete where they must be, closed at the end, exact in what they refuse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

import pytest

from cluster.errors import InvalidTransition
from cluster.lifecycle.run_status import RUN_TRANSITIONS, RunEventKind, RunStatus, next_run_status
from cluster.lifecycle.step_status import STEP_TRANSITIONS, StepEventKind, StepStatus, next_step_status

Table = Mapping[tuple[Any, Any], Any]
MACHINES = [
    pytest.param(RunStatus, RunEventKind, RUN_TRANSITIONS, next_run_status, "Run", id="run"),
    pytest.param(StepStatus, StepEventKind, STEP_TRANSITIONS, next_step_status, "StepRun", id="step"),
]
FIRST = {RunStatus: {RunStatus.PENDING, RunStatus.QUEUED}, StepStatus: {StepStatus.BLOCKED}}
STILL = {RunEventKind.SUBMITTED, RunEventKind.REPRIORITISED, RunEventKind.ENTERED}
"""Events that move nothing."""


@pytest.mark.parametrize(("statuses", "events", "table", "move", "entity"), MACHINES)
def test_every_pair_moves_or_is_refused_by_name(
    statuses: type[StrEnum], events: type[StrEnum], table: Table, move: Callable[..., Any], entity: str
) -> None:
    for status in statuses:
        for event in events:
            if (status, event) in table:
                assert move(status, event) is table[(status, event)]
                continue
            with pytest.raises(InvalidTransition) as refused:
                move(status, event)
            assert (refused.value.entity, refused.value.status, refused.value.event) == (
                entity,
                status,
                event,
            )
            assert all(word in str(refused.value) for word in (entity, status, event))


@pytest.mark.parametrize(("statuses", "events", "table", "move", "entity"), MACHINES)
def test_terminal_statuses_have_no_way_out_and_all_others_have(
    statuses: type[Any], events: type[StrEnum], table: Table, move: Callable[..., Any], entity: str
) -> None:
    with_a_way_out = {status for status, _ in table}
    assert with_a_way_out == {status for status in statuses if not status.is_terminal}


@pytest.mark.parametrize(("statuses", "events", "table", "move", "entity"), MACHINES)
def test_every_status_is_reached_and_leads_to_an_end(
    statuses: type[Any], events: type[StrEnum], table: Table, move: Callable[..., Any], entity: str
) -> None:
    def reached_from(status: Any) -> set[Any]:
        found, pending = {status}, [status]
        while pending:
            here = pending.pop()
            for (before, _), after in table.items():
                if before is here and after not in found:
                    found.add(after)
                    pending.append(after)
        return found

    assert set().union(*(reached_from(first) for first in FIRST[statuses])) == set(statuses)
    assert all(any(end.is_terminal for end in reached_from(status)) for status in statuses)


@pytest.mark.parametrize(("statuses", "events", "table", "move", "entity"), MACHINES)
def test_every_event_moves_something_but_those_that_say_they_do_not(
    statuses: type[StrEnum], events: type[StrEnum], table: Table, move: Callable[..., Any], entity: str
) -> None:
    assert {event for _, event in table} == set(events) - STILL


def test_every_open_run_can_be_cancelled_and_can_fail() -> None:
    for status in RunStatus:
        for event, end in (
            (RunEventKind.CANCELLED, RunStatus.CANCELLED),
            (RunEventKind.FAILED, RunStatus.FAILED),
        ):
            assert RUN_TRANSITIONS.get((status, event)) is (None if status.is_terminal else end)


def test_every_open_step_can_be_cancelled() -> None:
    for status in StepStatus:
        found = STEP_TRANSITIONS.get((status, StepEventKind.CANCELLED))
        assert found is (None if status.is_terminal else StepStatus.CANCELLED)


@pytest.mark.parametrize(("statuses", "events", "table", "move", "entity"), MACHINES)
def test_events_named_after_an_end_lead_there(
    statuses: type[Any], events: type[StrEnum], table: Table, move: Callable[..., Any], entity: str
) -> None:
    for (_, event), after in table.items():
        name = event.value.partition(".")[2]
        if after.is_terminal or name in {status.value for status in statuses if status.is_terminal}:
            assert after.value == name
