from cluster.lifecycle.run_status import RunStatus
from cluster.model.view import RunView
from serve_app.run_graph import draw_run


def test_graph_has_a_node_for_each_step_an_edge_for_each_need_and_quotes_what_clients_chose():
    plan = {
        "name": "p",
        "steps": [
            {"name": "a", "capability": "noop"},
            {"name": "b", "capability": "b", "needs": ["a"]},
        ],
    }
    view = RunView(
        run_id='r"1',
        tenant="default",
        dialect="runs",
        plan_name="p",
        status=RunStatus.QUEUED,
        priority=50,
        created_at=0.0,
        started_at=None,
        ended_at=None,
        progress=0.0,
        error=None,
        metadata={},
        steps=(),
        output=None,
        retry_count=0,
        cancel_reason="",
        plan=plan,
    )
    dot = draw_run(view)
    assert dot.startswith('digraph "r\\"1" {')
    assert '"a" [label="a\\nnoop\\nblocked", fillcolor="#eeeeee"];' in dot
    assert '"a" -> "b";' in dot
