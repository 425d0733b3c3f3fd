"""Which process is which: a pid alone is not enough, because the system gives it to somebody else later.

A mark is a pid with its start time. This module ends processes by mark only, never by name.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterable

import msgspec
import psutil

__all__ = ["ProcessMark", "descendants_of", "end_listening", "end_processes", "find_process", "mark_of"]

_SAME_START_S = 1.0
"""Start times are derived from the boot time, which moves a little when the clock is set."""
_KILL_WAIT_S = 5.0
_POLL_S = 0.02


class ProcessMark(msgspec.Struct, frozen=True):
    """One process for all time.

    Attributes:
        pid: As the system numbers it.
        created_at: Its start, Unix seconds.
        name: For people.
    """

    pid: int
    created_at: float
    name: str = ""


def mark_of(pid: int) -> ProcessMark | None:
    """Mark a living process; None if there is none with this pid."""
    try:
        process = psutil.Process(pid)
        return ProcessMark(process.pid, process.create_time(), process.name())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None


def find_process(mark: ProcessMark) -> psutil.Process | None:
    """Find the marked process; None if it ended (a zombie counts as ended) or the pid is another's."""
    try:
        process = psutil.Process(mark.pid)
        if abs(process.create_time() - mark.created_at) > _SAME_START_S:
            return None
        return None if process.status() == psutil.STATUS_ZOMBIE else process
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None


def descendants_of(pid: int) -> tuple[ProcessMark, ...]:
    """Mark all living children, grandchildren and so on."""
    try:
        processes = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return ()
    marks = (mark_of(process.pid) for process in processes)
    return tuple(mark for mark in marks if mark is not None)


def end_processes(marks: Iterable[ProcessMark], grace_s: float) -> tuple[ProcessMark, ...]:
    """End processes: SIGTERM to all, then SIGKILL to those that are left.

    Args:
        marks: Who; a mark whose process is gone is passed over.
        grace_s: Seconds between the two signals.

    Returns:
        Those that even SIGKILL did not end (in uninterruptible sleep, or another user's).
    """
    living = [mark for mark in marks if find_process(mark) is not None]
    for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, _KILL_WAIT_S)):
        for mark in living:
            _send(mark, number)
        living = _wait(living, wait_s)
    return tuple(living)


def end_listening(marks: Iterable[ProcessMark], limit_s: float) -> None:
    """Let HAProxy processes take no connection any more and end when those they have are done.

    Killed, they would reset connections that clients have just opened; these are refused or answered.

    Args:
        marks: Who; others than HAProxy are passed over.
        limit_s: Seconds to wait for their end; those with long streams go on.
    """
    proxies = [mark for mark in marks if mark.name == "haproxy"]
    for mark in proxies:
        _send(mark, signal.SIGUSR1)
    _wait(proxies, limit_s)


def _send(mark: ProcessMark, number: signal.Signals) -> None:
    process = find_process(mark)
    if process is not None:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process.send_signal(number)


def _wait(marks: list[ProcessMark], limit_s: float) -> list[ProcessMark]:
    """Wait until all have ended; psutil's own waiting counts zombies in, which an init may never reap."""
    deadline = time.monotonic() + limit_s
    while True:
        marks = [mark for mark in marks if find_process(mark) is not None]
        if not marks or time.monotonic() >= deadline:
            return marks
        time.sleep(_POLL_S)
