"""The edge as it is served: HAProxy, two replicas, plain clients. One `tutti up` for the whole file."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import grpc
import httpx
import psutil
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from cluster.model.plan import Plan, Step, Submission
from protos.orchestrator.v1 import orchestrator_pb2 as pb
from protos.orchestrator.v1 import orchestrator_pb2_grpc as pb_grpc
from tests.integration.running_service import eventually
from tests.integration.stubborn_client import StubbornClient, answers

pytestmark = pytest.mark.integration


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class _Served:
    def __init__(self, folder):
        self.http_port, self.grpc_port = _free_port(), _free_port()
        self.log = folder / "up.log"
        arguments = [
            "--http-port",
            self.http_port,
            "--grpc-port",
            self.grpc_port,
            "--data-dir",
            folder / "data",
        ]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "serve_app.cli", "up", *map(str, arguments)],
                stdout=log,
                stderr=subprocess.STDOUT,
                # Even an idle replica has more to do than that, so that Serve must start a third one.
                env={**os.environ, "TUTTI_INGRESS_CPU_SHARE": "0.01", "TUTTI_MAX_INGRESS": "3"},
            )
        deadline = time.monotonic() + 120
        while b"ready: " not in self.log.read_bytes():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)
        self.url = f"http://127.0.0.1:{self.http_port}"

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0, self.log.read_text()

    def replicas(self):
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [
            child for child in children if "ServeReplica:tutti" in child.name() + "".join(child.cmdline())
        ]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    served = _Served(tmp_path_factory.mktemp("served"))
    yield served
    served.stop()


@pytest.fixture
def client(served):
    with httpx.Client(base_url=served.url, timeout=30) as client:
        yield client


@pytest.fixture
def channel(served):
    with grpc.insecure_channel(f"127.0.0.1:{served.grpc_port}") as channel:
        yield channel


def test_plain_grpc_client_submits_follows_and_reads_without_metadata(channel):
    stub = pb_grpc.OrchestratorServiceStub(channel)
    data = pb.Input(type=pb.JSON, data=json.dumps([{"a": 1}, {"a": 2}]).encode())
    stub.SubmitTask(pb.TaskRequest(task_id="g-1", task_type="data_analysis", inputs=[data]))
    request = pb.TaskStatusRequest(task_id="g-1")
    updates = list(stub.StreamTaskUpdates(request, timeout=60))
    assert updates[0].status == pb.QUEUED
    assert updates[-1].status == pb.COMPLETED
    assert stub.GetTaskStatus(request).output.json_data
    assert stub.HealthCheck(pb.HealthCheckRequest()).healthy
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetTaskStatus(pb.TaskStatusRequest(task_id="nobody"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_names_the_service(channel):
    names = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert "orchestrator.OrchestratorService" in names


def test_events_come_while_the_run_goes_on(client):
    plan = {"name": "p", "steps": [{"name": "a", "capability": "sleep", "inputs": {"seconds": 0.5}}]}
    run_id = client.post("/api/v1/runs", json={"plan": plan}).json()["run_id"]
    with client.stream("GET", f"/api/v1/runs/{run_id}/events") as stream:
        seen = [
            (time.monotonic(), json.loads(line[6:])["type"])
            for line in stream.iter_lines()
            if line.startswith("data: ")
        ]
    types = [kind for _, kind in seen]
    assert types[-1] == "run.succeeded"
    started_at = next(at for at, kind in seen if kind == "step.started")
    assert seen[-1][0] - started_at > 0.3


def test_command_line_tells_how_pools_stand_and_why_a_run_waits(served, client):
    def tutti(*arguments):
        command = [sys.executable, "-m", "serve_app.cli", *arguments, "--url", served.url]
        environment = {**os.environ, "COLUMNS": "200"}
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    held = {"name": "sleep", "capability": "sleep", "inputs": {"seconds": 60}}
    after = {"name": "after", "capability": "noop", "needs": ["sleep"]}
    reached = "sleep: The limit of tenant:default is reached: 1/1 run."
    submitted = []

    def submit():
        body = {"plan": {"name": "two", "steps": [held, after]}}
        submitted.append(client.post("/api/v1/runs", json=body).raise_for_status().json()["run_id"])
        return submitted[-1]

    def cancel(run_id):
        client.post(f"/api/v1/runs/{run_id}/cancel", json={}).raise_for_status()

    def waits_for_the_limit():
        """Declared is not in force yet: what begins all the same is cancelled, and another one tried."""
        told = tutti("why", submit())
        if reached not in told:
            cancel(submitted[-1])
            return ""
        return told

    holder = submit()
    eventually(lambda: client.get(f"/api/v1/runs/{holder}").json()["status"] == "running", "it runs")
    tutti("limits", "set", "tenant:default", "--max", "1")
    told = eventually(waits_for_the_limit, "one waits for the limit")
    assert told.splitlines() == [reached, "after: It needs sleep, not ended yet."]
    eventually(lambda: "1 ready of 0-1" in tutti("pools"), "the pool is told with its replica")
    assert "utilisation" in tutti("capacity")
    assert "tenant:default" in tutti("limits")

    cancel(holder)
    cancel(submitted[-1])
    tutti("limits", "rm", "tenant:default")
    eventually(lambda: not client.get("/api/v1/limits").json()["limits"], "the limit is gone")


def test_oversize_body_without_a_length_is_413_through_the_proxy(client):
    response = client.post("/api/v1/tasks", content=(b"x" * (1 << 20) for _ in range(40)))
    assert response.status_code == 413


def test_message_over_the_limit_and_bytes_that_are_none_are_refused_through_the_proxy(channel):
    stub = pb_grpc.OrchestratorServiceStub(channel)
    big = pb.TaskRequest(task_type="data_analysis", inputs=[pb.Input(data=b"x" * (40 << 20))])
    with pytest.raises(grpc.RpcError) as caught:
        stub.SubmitTask(big)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/orchestrator.OrchestratorService/SubmitTask")(b"\xff\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_page_of_elsewhere_is_refused_through_the_proxy(client):
    assert client.get("/health", headers={"Origin": "https://evil.example"}).status_code == 403
    assert client.get("/health", headers={"Host": "evil.example"}).status_code == 403


def test_death_of_one_ingress_replica_fails_no_new_request_and_loses_or_doubles_no_run(served, client):
    """A request that is under way to the dying replica may break: with the same id it is safe to repeat."""
    replicas = served.replicas()
    assert len(replicas) >= 2
    before = totals(client)
    nap = Plan(name="nap", steps=(Step(name="a", capability="sleep", inputs={"seconds": 4.0}),))
    echo = Plan(name="echo", steps=(Step(name="a", capability="echo", inputs={"$ref": "inputs"}),))
    naps = [Submission(run_id=f"nap-{number}", plan=nap, inputs={}) for number in range(12)]
    echoes = [Submission(run_id=f"echo-{number}", plan=echo, inputs={"n": number}) for number in range(1000)]
    with StubbornClient(served.url, num_threads=20) as clients:
        answers([clients.submit(each) for each in naps], 30)
        followed = [clients.follow(each.run_id) for each in naps]
        eventually(lambda: all("step.progress" in story.types for story, _ in followed), "all are followed")
        submits = [clients.submit(each) for each in echoes]
        eventually(lambda: clients.num_answered > 200, "many are submitted")
        os.kill(replicas[0].pid, signal.SIGKILL)
        psutil.wait_procs(replicas[:1], timeout=10)
        dead_at = time.monotonic()
        given = answers(submits, 60)
        for _, end in followed:
            end.result(60)

    assert {answer.status for answer in given} == {200}
    assert not [status for answer in given for status in answer.put_off]
    broken = [(sent_at - dead_at, error) for answer in given for sent_at, error in answer.broken]
    assert not [each for each in broken if each[0] > 0], broken
    for answer in given:
        assert answer.broken or answer.body["created"]
    stories = [story for story, _ in followed]
    assert any(story.num_connections > 1 for story in stories), "no stream was on the dead one"
    for story in stories:
        assert story.seqs == list(range(1, len(story.seqs) + 1))
        assert story.types[-1] == "run.succeeded"
    eventually(lambda: totals(client)["tasks_active"] == 0, "all Runs have ended")
    after, num_runs = totals(client), len(naps) + len(echoes)
    assert after["tasks_submitted_total"] - before["tasks_submitted_total"] == num_runs
    assert after["tasks_completed_total"] - before["tasks_completed_total"] == num_runs


def test_ingress_above_its_share_of_the_cpu_gets_another_replica_up_to_the_most(served):
    eventually(lambda: len(served.replicas()) == 3, "Serve has started a third replica", within_s=90)


def totals(client):
    lines = client.get("/metrics").raise_for_status().text.splitlines()
    return {
        name: float(value) for name, value in (line.split() for line in lines if line.startswith("tasks_"))
    }
