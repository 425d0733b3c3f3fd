"""Why a start failed, in one line that a person can use."""

from __future__ import annotations

from ray.exceptions import RayTaskError

from serve_app.launch.up import first_line


def test_failure_inside_an_actor_is_told_by_its_cause_and_not_by_the_actors_whereabouts() -> None:
    cause = RuntimeError("HAProxy crashed during startup: cannot bind\nand more")
    failure = RayTaskError("ready", "ray::HAProxyManager.ready() (pid=1)\nRuntimeError: HAProxy", cause)
    assert first_line(failure) == "HAProxy crashed during startup: cannot bind"
    assert first_line(failure.as_instanceof_cause()) == "HAProxy crashed during startup: cannot bind"
    assert first_line(ValueError()) == "ValueError"
