"""Why a start failed, in one line that a person can use."""

from __future__ import annotations

from ray.exceptions import RayTaskError

from cluster.failure_lines import cause_line, first_line


def test_failure_inside_an_actor_is_told_by_its_cause_and_not_by_the_actors_whereabouts() -> None:
    cause = RuntimeError("HAProxy crashed during startup: cannot bind\nand more")
    failure = RayTaskError("ready", "ray::HAProxyManager.ready() (pid=1)\nRuntimeError: HAProxy", cause)
    assert first_line(failure) == "HAProxy crashed during startup: cannot bind"
    assert first_line(failure.as_instanceof_cause()) == "HAProxy crashed during startup: cannot bind"
    assert first_line(ValueError()) == "ValueError"


def test_actor_that_could_not_be_made_is_told_by_what_was_raised_without_colours_and_whereabouts() -> None:
    text = (
        "The actor died because of its creation task, \x1b[36mray::S.__init__()\x1b[39m (pid=1)\n"
        '  File "/a/actors/scheduler.py", line 5, in __init__\n'
        "    load(settings)\n"
        "    ^^^^^^^^^^^^^^\n"
        '  File "/a/actors/pools.py", line 9, in load\n'
        "    raise InvalidSetting(reason) from error\n"
        "cluster.errors.InvalidSetting: TUTTI_POOLS_FILE: /x: [Errno 2] No such file\n"
    )
    assert cause_line(text) == "TUTTI_POOLS_FILE: /x: [Errno 2] No such file"
    assert cause_line(text.replace("cluster.errors.InvalidSetting", "ValueError")).startswith("ValueError: T")
    assert cause_line("\x1b[31mred\x1b[0m\nmore") == "red"
    assert cause_line(" \n") == ""


def test_haproxy_that_does_not_start_is_told_by_its_alert_and_not_by_its_notices() -> None:
    text = "HAProxy crashed: [NOTICE] (1) : version 2\n[WARNING] (1) : no log\n[ALERT]  (1) : cannot bind"
    assert cause_line(text) == "(1) : cannot bind"
