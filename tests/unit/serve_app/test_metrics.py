import msgspec

from cluster.store.capacity import CapacitySnapshot
from cluster.store.run_reader import PartitionFigures, Totals
from serve_app.metrics import ServiceFigures, render_metrics
from tests.snapshots import snapshot


def _lines(totals=None, snapshots=(), **more):
    figures = ServiceFigures(totals=totals, orchestrators=snapshots, uptime_s=1.0, **more)
    return render_metrics(figures).decode().splitlines()


def test_documented_names_are_there_with_the_all_time_counts():
    lines = _lines(Totals(5, 2, 1, 1, 1))
    assert "# TYPE tasks_submitted_total counter" in lines
    assert "tasks_submitted_total 5.0" in lines
    assert "tasks_completed_total 2.0" in lines
    assert "tasks_failed_total 1.0" in lines
    assert "# TYPE task_execution_time_ms summary" in lines


def test_quantiles_are_over_the_samples_of_all_processes():
    halves = [
        {"process": str(half), "samples": {"task_execution_time_ms": [*range(half, 101, 2)]}}
        for half in (1, 2)
    ]
    lines = _lines(Totals(0, 0, 0, 0, 0), halves)
    assert 'task_execution_time_ms{quantile="0.5"} 50.0' in lines
    assert 'task_execution_time_ms{quantile="0.95"} 95.0' in lines
    assert 'task_execution_time_ms{quantile="0.99"} 99.0' in lines
    assert "task_execution_time_ms_count 100.0" in lines


def test_what_processes_count_carries_our_name_and_theirs():
    snapshots = [
        {"process": "o-0", "counters": {"commits_total": 3}, "gauges": {"runs_loaded": 4}},
        {"process": "o-1", "counters": {"commits_total": 5}, "gauges": {}},
    ]
    lines = _lines(Totals(0, 0, 0, 0, 0), snapshots)
    assert 'tutti_commits_total{process="o-0"} 3.0' in lines
    assert 'tutti_commits_total{process="o-1"} 5.0' in lines
    assert 'tutti_runs_loaded{process="o-0"} 4.0' in lines


def test_absence_of_the_store_is_a_figure_too():
    lines = _lines()
    assert "tutti_store_up 0.0" in lines
    assert not any(line.startswith("tasks_submitted") for line in lines)


def test_steps_that_wait_are_told_by_capability():
    told = {"process": "o-0", "labelled": {"steps_waiting_by_capability": {"capability": {"echo": 3}}}}
    lines = _lines(Totals(0, 0, 0, 0, 0), [told])
    assert 'tutti_steps_waiting_by_capability{capability="echo",process="o-0"} 3.0' in lines


def test_partition_shows_its_lease_and_what_waits_in_its_inbox():
    lines = _lines(Totals(0, 0, 0, 0, 0), partitions=[PartitionFigures(7, 3, 2.5, 12, 1, 0)])
    assert 'tutti_partition_lease_seconds{partition="7"} 2.5' in lines
    assert 'tutti_partition_epoch{partition="7"} 3.0' in lines
    assert 'tutti_partition_inbox_entries{partition="7"} 12.0' in lines
    assert 'tutti_webhooks_pending{partition="7"} 1.0' in lines


def test_scheduler_that_is_silent_is_a_figure_too():
    lines = _lines(Totals(0, 0, 0, 0, 0))
    assert "tutti_scheduler_up 0.0" in lines
    assert not any(line.startswith("tutti_capacity") for line in lines)


def test_capacity_is_told_by_pool_node_device_and_capability():
    lines = _lines(Totals(0, 0, 0, 0, 0), capacity=msgspec.convert(snapshot(), CapacitySnapshot))
    for line in (
        "tutti_scheduler_up 1.0",
        "tutti_capacity_utilisation 0.25",
        "tutti_capacity_fragmentation 0.5",
        'tutti_pool_replicas{pool="llm",state="ready"} 1.0',
        'tutti_pool_replicas{pool="llm",state="starting"} 0.0',
        'tutti_pool_replicas_max{pool="llm"} 4.0',
        'tutti_pool_steps_waiting{pool="llm"} 3.0',
        'tutti_pool_steps_running{pool="llm"} 4.0',
        'tutti_pool_oldest_wait_seconds{pool="llm"} 2.5',
        'tutti_pool_held_back{pool="llm"} 1.0',
        'tutti_pool_held_back{pool="basic"} 0.0',
        'tutti_step_wait_seconds{capability="llm",quantile="0.95"} 2.0',
        'tutti_scale_events_total{event="started"} 3.0',
        'tutti_node_cpus_free{node="n1"} 3.5',
        'tutti_device_free{device="0",node="n1"} 0.75',
        'tutti_device_memory_free_gb{device="0",node="n1"} 60.0',
        'tutti_capability_limit_used{capability="llm"} 4.0',
        'tutti_capability_limit{capability="llm"} 8.0',
    ):
        assert line in lines, line


def test_no_tenant_and_no_users_key_is_named_where_anybody_reads():
    lines = _lines(Totals(0, 0, 0, 0, 0), capacity=msgspec.convert(snapshot(), CapacitySnapshot))
    assert 'tutti_limits_used{kind="tenant"} 5.0' in lines
    assert 'tutti_limits_reached{kind="tenant"} 1.0' in lines
    assert 'tutti_limits_reached{kind="user"} 1.0' in lines
    assert not any(name in line for line in lines for name in ("acme", "shop", "user-7"))
