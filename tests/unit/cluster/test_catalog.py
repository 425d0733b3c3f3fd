import pytest

from cluster.catalog import RECIPE_NAMES, Arrangement, arranged_plan, recipe_of
from cluster.errors import InvalidInput
from cluster.model.plan import SuccessRule


def _needs(name, arrangement):
    plan = arranged_plan(name, arrangement)
    return {step.step.name: [plan.steps[need].step.name for need in step.needs] for step in plan.steps}


def test_sequential_report_hands_each_output_to_the_next():
    assert _needs("report_generation", Arrangement.SEQUENTIAL) == {
        "data_ingest": [],
        "data_analysis": ["data_ingest"],
        "synthesis": ["data_ingest", "data_analysis"],
    }


def test_parallel_report_gives_every_agent_the_inputs_and_tolerates_failures():
    plan = arranged_plan("report_generation", Arrangement.PARALLEL).plan
    assert _needs("report_generation", Arrangement.PARALLEL) == {
        "data_ingest": [],
        "data_analysis": [],
        "synthesis": [],
    }
    assert plan.success is SuccessRule.ANY
    assert {str(step.inputs) for step in plan.steps} == {"{'inputs': {'$ref': 'inputs.inputs'}}"}


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_output_is_that_of_the_last_agent_in_every_arrangement(name):
    last = recipe_of(name).stages[-1].agent
    for arrangement in Arrangement:
        (reference,) = arranged_plan(name, arrangement).output.references
        assert (reference.step, reference.path) == (last, ())


def test_hybrid_report_spreads_the_first_agent_over_the_inputs():
    first, *others = arranged_plan("report_generation", Arrangement.HYBRID).plan.steps
    assert first.map == {"$ref": "inputs.inputs"}
    assert first.inputs == {"inputs": [{"$ref": "item"}]}
    assert all(step.map is None for step in others)
    assert _needs("report_generation", Arrangement.HYBRID) == _needs(
        "report_generation", Arrangement.SEQUENTIAL
    )


@pytest.mark.parametrize("name", RECIPE_NAMES)
@pytest.mark.parametrize("arrangement", Arrangement)
def test_every_recipe_compiles_in_every_arrangement_with_its_own_agents(name, arrangement):
    plan = arranged_plan(name, arrangement)
    assert [step.step.capability for step in plan.steps] == [stage.agent for stage in recipe_of(name).stages]
    assert plan is arranged_plan(name, arrangement)


def test_unknown_recipe_is_refused_with_the_known_ones():
    with pytest.raises(InvalidInput, match="report_generation"):
        arranged_plan("poetry", Arrangement.SEQUENTIAL)
