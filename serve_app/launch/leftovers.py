"""What a run of the service leaves behind when it is killed, and who may serve a data directory.

A run writes its processes and temporary folders down in `runtime.json`; the next one ends and removes what is
left, and nothing else: a process is ended only if its pid and start time are recorded, or if it carries the
dead run's id in its environment. The embedded Redis is kept and adopted: what it holds is ready to serve.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Collection
from pathlib import Path

import msgspec
import psutil

from cluster.errors import LaunchFailed
from cluster.settings import INSTANCE_VARIABLE
from serve_app.launch.kept_logs import keep_logs
from serve_app.launch.processes import ProcessMark, descendants_of, end_processes, find_process, mark_of

__all__ = ["SESSION_LOGS", "Claim", "temporary_folder"]

SESSION_LOGS = Path("r", "session_latest", "logs")
"""Where Ray writes, below the temporary folder. Ray opens its own folder `r` to everybody; the one around it
is ours alone."""
_FOLDER_PREFIX = "tutti-"
_LONGEST_ROOT_BYTES = 12
"""HAProxy adds up to 95 bytes below it (our folder, a node's id, a name with its pid), Ray 83; a socket's
path may have 107."""


class _RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the service.

    Attributes:
        instance: Its id; its processes carry it in their environment.
        host: Pids mean nothing on another machine (or in another container).
        owner: The `tutti up` process.
        children: Everything below it, as last seen.
        folders: Temporary folders to remove when it is dead.
        ray_address: Where Python drivers attach, `host:port`; "" before Ray runs.
        http_port: Where HTTP clients connect; 0 before Ray runs.
        grpc_port: The same for gRPC.
    """

    instance: str
    host: str
    owner: ProcessMark
    children: tuple[ProcessMark, ...] = ()
    folders: tuple[str, ...] = ()
    ray_address: str = ""
    http_port: int = 0
    grpc_port: int = 0


class Claim:
    """The right to serve a data directory, held until `release` or the end of this process.

    Args:
        data_dir: The directory; made if missing.
    """

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "runtime.json"
        self._lock_path = data_dir / "runtime.lock"
        self._lock: int | None = None
        self._is_behind = False  # whether the file is older than the record
        self._record = _RunRecord(
            instance=secrets.token_hex(8),
            host=socket.gethostname(),
            owner=mark_of(os.getpid()) or ProcessMark(os.getpid(), 0.0),
        )

    @property
    def instance(self) -> str:
        """Id of this run, to be exported as `TUTTI_INSTANCE`."""
        return self._record.instance

    def take(self, keep: Collection[ProcessMark] = (), grace_s: float = 3.0) -> tuple[ProcessMark, ...]:
        """Claim the directory and end what a dead run left.

        Args:
            keep: Processes to leave alone (the Redis that will be adopted).
            grace_s: Seconds between SIGTERM and SIGKILL.

        Returns:
            The processes that were ended.

        Raises:
            LaunchFailed: A living service has the directory, it is not writable, or a leftover does not end.
        """
        self._take_lock()
        try:
            before = self._read()
            ended = self._clear(before, keep, grace_s) if before is not None else ()
            self._write()
        except OSError as error:
            self._unlock()
            raise LaunchFailed(f"the data directory {self._path.parent} cannot be used: {error}") from None
        except LaunchFailed:
            self._unlock()
            raise
        return ended

    def note_folder(self, folder: Path) -> None:
        """Record a temporary folder, before anything is put into it."""
        self._record = msgspec.structs.replace(self._record, folders=(*self._record.folders, str(folder)))
        self._write()

    def note_address(self, ray_address: str, http_port: int, grpc_port: int) -> None:
        """Record where clients of this run connect."""
        self._record = msgspec.structs.replace(
            self._record, ray_address=ray_address, http_port=http_port, grpc_port=grpc_port
        )
        self._write()

    def note_children(self, keep: Collection[ProcessMark] = ()) -> None:
        """Record all processes below this one; those seen earlier stay recorded while they live."""
        kept = {mark.pid for mark in keep}
        seen = {mark.pid: mark for mark in self._record.children if find_process(mark) is not None}
        seen.update({mark.pid: mark for mark in descendants_of(os.getpid())})
        children = tuple(mark for pid, mark in sorted(seen.items()) if pid not in kept)
        if children != self._record.children or self._is_behind:
            self._record = msgspec.structs.replace(self._record, children=children)
            # On a full disk the service goes on; who comes next finds the younger ones by their environment.
            with contextlib.suppress(LaunchFailed):
                self._write()

    def end_children(
        self, keep: Collection[ProcessMark] = (), grace_s: float = 3.0
    ) -> tuple[ProcessMark, ...]:
        """End what is still below this process; return what even SIGKILL did not end."""
        self.note_children(keep)
        return end_processes(_processes_of(self._record, keep), grace_s)

    def release(self) -> None:
        """Give the directory back after an orderly end: no process is left, the folders go, logs are kept."""
        self._remove_folders(self._record)
        self._path.unlink(missing_ok=True)
        self._unlock()

    def _take_lock(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            reason = error.strerror or str(error)
            raise LaunchFailed(f"the data directory {self._path.parent} is not writable: {reason}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            owner = self._read()
            pid = owner.owner.pid if owner else "unknown"
            raise LaunchFailed(
                f"the data directory {self._path.parent} is served by process {pid} already"
            ) from None
        self._lock = descriptor

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _clear(
        self, before: _RunRecord, keep: Collection[ProcessMark], grace_s: float
    ) -> tuple[ProcessMark, ...]:
        if before.host != self._record.host:
            return ()
        # The lock says that the owner is dead; where somebody removed the file, its process says otherwise.
        if before.owner.pid != os.getpid() and find_process(before.owner) is not None:
            raise LaunchFailed(
                f"the data directory {self._path.parent} is served by process {before.owner.pid} already"
            )
        found = _processes_of(before, keep)
        left = end_processes(found, grace_s)
        if left:
            pids = ", ".join(str(mark.pid) for mark in left)
            raise LaunchFailed(f"processes of a dead run cannot be ended: {pids}")
        self._remove_folders(before)
        return found

    def _remove_folders(self, record: _RunRecord) -> None:
        """Remove a run's folders but keep its logs; a record that names folders not ours is not believed."""
        for folder in map(Path, record.folders):
            if folder.name.startswith(_FOLDER_PREFIX) and folder.parent == _short_root():
                keep_logs(folder / SESSION_LOGS, self._path.parent / "logs")
                shutil.rmtree(folder, ignore_errors=True)

    def _read(self) -> _RunRecord | None:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_RunRecord)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def _write(self) -> None:
        self._is_behind = True
        draft = self._path.with_suffix(".new")
        try:
            draft.unlink(missing_ok=True)
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor has no path
                file.write(msgspec.json.encode(self._record))
            draft.replace(self._path)
        except OSError as error:
            reason = error.strerror or str(error)
            raise LaunchFailed(f"the data directory {self._path.parent} cannot be used: {reason}") from None
        self._is_behind = False


def temporary_folder() -> Path:
    """Make a private folder with a path so short that Ray's and HAProxy's sockets fit below it."""
    return Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX, dir=_short_root()))


def _processes_of(record: _RunRecord, keep: Collection[ProcessMark]) -> tuple[ProcessMark, ...]:
    """Find what lives of a run: the recorded, and those born after the record that carry its id."""
    kept = {mark.pid for mark in keep} | {os.getpid()}
    found = {mark.pid: mark for mark in record.children if find_process(mark) is not None}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(INSTANCE_VARIABLE) == record.instance:
                mark = mark_of(process.pid)
                if mark is not None:
                    found.setdefault(mark.pid, mark)
    return tuple(mark for pid, mark in sorted(found.items()) if pid not in kept)


def _short_root() -> Path:
    """The system's folder for temporary files, or /tmp where that is too long (macOS) for a socket's path."""
    usual = Path(tempfile.gettempdir())
    return usual if len(os.fsencode(usual)) <= _LONGEST_ROOT_BYTES else Path("/tmp")  # noqa: S108 - mkdtemp follows
