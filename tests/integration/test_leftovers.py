"""A killed run's processes are ended by the next one, and nobody else's ever are."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import psutil
import pytest

from cluster.errors import LaunchFailed
from serve_app.launch.leftovers import Claim
from serve_app.launch.processes import ProcessMark, end_processes, find_process, mark_of

pytestmark = pytest.mark.integration

SERVICE = """
import os, subprocess, sys, time
from pathlib import Path
from serve_app.launch.leftovers import Claim, temporary_folder
claim = Claim(Path(sys.argv[1]))
claim.take()
folder = temporary_folder()
claim.note_folder(folder)
(folder / "session").mkdir()
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
recorded = subprocess.Popen(sleep, start_new_session=True)
claim.note_children()
marked = subprocess.Popen(sleep, start_new_session=True, env={**os.environ, "TUTTI_INSTANCE": claim.instance})
print(recorded.pid, marked.pid, folder, flush=True)
time.sleep(600)
"""
ORDERLY = """
import os, subprocess, sys
from pathlib import Path
from serve_app.launch.leftovers import Claim, temporary_folder
claim = Claim(Path(sys.argv[1]))
claim.take()
folder = temporary_folder()
claim.note_folder(folder)
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
child = subprocess.Popen(sleep, env={**os.environ, "TUTTI_INSTANCE": claim.instance})
assert claim.end_children() == ()
claim.release()
child.wait()
print(child.pid, folder)
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(600)
"""


class DeadRun:
    """A service to be killed, with a folder and two processes: one recorded, one born after the record."""

    def __init__(self, data_dir: Path, stack: ExitStack) -> None:
        self.owner = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", SERVICE, str(data_dir)],
                stdout=subprocess.PIPE,
                text=True,
                cwd=Path.cwd(),
            )
        )
        stack.callback(self.owner.kill)
        assert self.owner.stdout is not None
        recorded, marked, folder = self.owner.stdout.readline().split()
        self.children = [mark for pid in (recorded, marked) if (mark := mark_of(int(pid))) is not None]
        self.folder = Path(folder)
        stack.callback(end_processes, self.children, 0.0)

    def kill(self) -> None:
        self.owner.kill()
        self.owner.wait()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[DeadRun]:
    with ExitStack() as stack:
        yield DeadRun(tmp_path, stack)


def test_next_run_ends_what_a_killed_one_left(service: DeadRun, tmp_path: Path) -> None:
    service.kill()
    assert len(service.children) == 2
    assert all(find_process(mark) for mark in service.children)
    claim = Claim(tmp_path)
    ended = claim.take()
    assert {mark.pid for mark in service.children} <= {mark.pid for mark in ended}
    assert not any(find_process(mark) for mark in service.children)
    assert not service.folder.exists()
    claim.release()
    assert not (tmp_path / "runtime.json").exists()


def test_directory_of_a_living_run_is_refused_with_its_pid_and_nothing_is_ended(
    service: DeadRun, tmp_path: Path
) -> None:
    with pytest.raises(LaunchFailed, match=f"served by process {service.owner.pid} already"):
        Claim(tmp_path).take()
    (tmp_path / "runtime.lock").unlink()
    with pytest.raises(LaunchFailed, match=f"served by process {service.owner.pid} already"):
        Claim(tmp_path).take()
    assert all(find_process(mark) for mark in service.children)
    assert service.folder.exists()


def test_process_that_is_kept_is_left_alone(service: DeadRun, tmp_path: Path) -> None:
    service.kill()
    claim = Claim(tmp_path)
    claim.take(keep=[service.children[0]])
    assert find_process(service.children[0])
    assert not find_process(service.children[1])
    claim.release()


def test_recorded_pid_that_belongs_to_somebody_else_by_now_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as bystander:
        mark = mark_of(bystander.pid)
        assert mark is not None
        record = {
            "instance": "0" * 16,
            "host": os.uname().nodename,
            "owner": {"pid": 2**22 - 1, "created_at": 1.0},
            "children": [{"pid": bystander.pid, "created_at": mark.created_at - 3600.0}],
            "folders": [str(tmp_path), "/etc"],
        }
        (tmp_path / "runtime.json").write_bytes(msgspec.json.encode(record))
        claim = Claim(tmp_path)
        assert claim.take() == ()
        assert find_process(mark)
        assert tmp_path.exists()
        claim.release()
        bystander.kill()


def test_run_of_another_machine_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as bystander:
        mark = mark_of(bystander.pid)
        record = {
            "instance": "0" * 16,
            "host": "another-host",
            "owner": {"pid": 2**22 - 1, "created_at": 1.0},
            "children": [mark],
        }
        (tmp_path / "runtime.json").write_bytes(msgspec.json.encode(record))
        claim = Claim(tmp_path)
        assert claim.take() == ()
        assert mark is not None
        assert find_process(mark)
        claim.release()
        bystander.kill()


def test_orderly_end_takes_the_children_and_the_folder(tmp_path: Path) -> None:
    # In a process of its own: here it would end what other tests have below this one.
    ended = subprocess.run(
        [sys.executable, "-c", ORDERLY, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
    )
    child, folder = ended.stdout.split()
    assert not psutil.pid_exists(int(child))
    assert not Path(folder).exists()
    claim = Claim(tmp_path)
    assert claim.take() == ()
    claim.release()


def test_process_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        mark = mark_of(child.pid)
        assert mark is not None
        assert end_processes([mark], grace_s=0.2) == ()
        assert find_process(mark) is None


def test_unreadable_record_is_taken_for_none(tmp_path: Path) -> None:
    (tmp_path / "runtime.json").write_text("{broken")
    claim = Claim(tmp_path)
    assert claim.take() == ()
    claim.release()


def test_mark_of_an_ended_process_finds_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        mark = ProcessMark(child.pid, psutil.Process(child.pid).create_time())
        child.wait()
    assert find_process(mark) is None
