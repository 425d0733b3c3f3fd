"""Logs of a process: one format for the service's records and those of agents, from the level that is set."""

from __future__ import annotations

import subprocess
import sys

SPEAKER = """
import logging, sys
import structlog
from cluster.logs import configure_logs

configure_logs(sys.argv[1])
configure_logs(sys.argv[1])
log = structlog.get_logger("tutti.driver")
log.debug("looking", at=1)
log.info("took 100% of", partition=3)
logging.getLogger("my_agent").info("working on %s", "it")
logging.getLogger("httpx").info("GET /")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("failed", loop="timer")
"""


def said(level: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SPEAKER, level], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout == ""
    return [line.partition(" ")[2].partition(" ")[2] for line in done.stderr.splitlines() if line[:2] == "20"]


def test_records_below_the_level_are_dropped_and_each_other_is_one_line() -> None:
    info = ["INFO tutti.driver: took 100% of partition=3", "INFO my_agent: working on it"]
    failure = ["ERROR tutti.driver: failed loop='timer'"]
    assert said("info") == [*info, *failure]
    assert (
        said("debug")
        == ["DEBUG tutti.driver: looking at=1", *info, "INFO httpx: GET /", *failure][:3] + failure
    )
    assert said("error") == failure
