"""Large values, kept by the hash of their content in a local folder.

A blob is on disk, synced, before `put` returns, so the commit that names it never names nothing. The same
content has one file, however often and by whomever it is written. The store refuses to know who needs a blob:
`sweep` is told.

A reference carries a seal, made of its digest with a key that only this folder holds. Contents that clients
know or guess have known digests, so a digest alone opens nothing: one must have been handed the reference.

Layout below the root: `blobs/ab/cdef…` (hex of SHA-256), `incoming/` for files being written, `key`, `lock`.
Writers and sweepers of any process exclude each other by flock on `lock`, so a blob that is put again is
never swept in the same moment. Reading needs no lock: a file is complete or absent.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import InvalidInput, NotFound, Unavailable
from cluster.model.blob_reference import RESERVED_KEY, blob_reference, is_reference

__all__ = ["BlobStore", "Swept", "digests_in"]

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_ANY_DIGEST = re.compile(rb'"(sha256:[0-9a-f]{64})"')
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FULL_RETRY_AFTER_S = 30.0
_DAMAGED_SUFFIX = ".damaged"
_JSON_STARTS = frozenset({b"{", b"[", b" ", b"\t", b"\r", b"\n"})
"""First bytes of a JSON value that can name a blob; white space may stand before it."""
_KEY_BYTES = 32
_SEAL_CHARACTERS = 32


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep removed.

    Attributes:
        num_blobs: Blobs nobody named.
        num_bytes: Their size together.
        num_leftovers: Half-written files of writers that died, and damaged blobs.
    """

    num_blobs: int
    num_bytes: int
    num_leftovers: int


class BlobStore:
    """The blobs below one folder. Safe to use from any number of threads and processes at once.

    Args:
        root: The folder; made when it is not there, readable by its owner alone.

    Raises:
        Unavailable: The folder cannot be made, or its key not be read.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._blobs = self._root / "blobs"
        self._incoming = self._root / "incoming"
        with _disk_errors("the blob folder cannot be made"):
            for folder in (self._root, self._blobs, self._incoming):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._key = self._read_key()

    def put(self, content: bytes, media_type: str) -> dict[str, Any]:
        """Store content and return the reference to it; when this returns, a power cut does not lose it.

        Args:
            content: Any bytes.
            media_type: What they are; noted in the reference, not in the store.

        Raises:
            Unavailable: The disk is full or broken; nothing was left behind.
        """
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        path = self._path(digest)
        with _disk_errors("the blob cannot be stored"), self._lock(fcntl.LOCK_SH):
            if not path.parent.is_dir():
                path.parent.mkdir(mode=0o700, exist_ok=True)
                _sync_folder(self._blobs)
            if _size_bytes(path) == len(content):
                # Younger now, so that no sweep that has listed its age already takes it away.
                os.utime(path)
            else:
                self._write(path, content)
            # Also for a file that was there: its other writer may not have come this far yet.
            _sync_folder(path.parent)
        return blob_reference(digest, len(content), media_type, self._seal(digest))

    def read(self, reference: dict[str, Any]) -> bytes:
        """Return the content behind a reference, checked against its digest.

        Raises:
            InvalidInput: It is no reference that this store has made.
            NotFound: No such blob, or what is there is damaged (`details["damaged"]`); a damaged file is
                moved aside, so that the same content can be stored again.
            Unavailable: The disk cannot be read.
        """
        digest = self.check(reference)
        path = self._path(digest)
        try:
            with _disk_errors("the blob cannot be read"):
                content = path.read_bytes()
        except FileNotFoundError:
            raise NotFound(f"blob {digest} is not in the store") from None
        if hashlib.sha256(content).hexdigest() != digest.removeprefix("sha256:"):
            with contextlib.suppress(OSError):
                path.rename(path.with_name(path.name + _DAMAGED_SUFFIX))
            raise NotFound(f"blob {digest} is damaged", damaged=True)
        return content

    def check(self, reference: dict[str, Any]) -> str:
        """Return the digest of a reference; whether the blob is there is not looked at.

        Raises:
            InvalidInput: It is no reference that this store has made.
        """
        if not is_reference(reference):
            raise InvalidInput("not a reference to a blob")
        digest = str(reference[RESERVED_KEY])
        seal = str(reference.get("seal", ""))
        if not hmac.compare_digest(seal.encode("utf-8", "replace"), self._seal(digest).encode()):
            raise InvalidInput("not a reference that this service has made")
        return digest

    def exists(self, reference: dict[str, Any] | str) -> bool:
        """Say whether the blob is there; its content is not checked.

        Raises:
            InvalidInput: It is neither a reference nor a digest.
        """
        return self._path(_digest_of(reference)).is_file()

    def delete(self, reference: dict[str, Any] | str) -> bool:
        """Remove a blob whoever may name it, and say whether it was there.

        Raises:
            InvalidInput: It is neither a reference nor a digest.
            Unavailable: The disk cannot be written.
        """
        path = self._path(_digest_of(reference))
        with _disk_errors("the blob cannot be removed"), self._lock(fcntl.LOCK_EX):
            try:
                path.unlink()
            except FileNotFoundError:
                return False
        return True

    def older_than(self, than_s: float) -> frozenset[str]:
        """Return the digests of the blobs that were last put at least this long ago.

        Raises:
            Unavailable: The disk cannot be read.
        """
        newest = time.time() - than_s
        found: set[str] = set()
        with _disk_errors("the blob folder cannot be read"):
            for path in self._blobs.glob("*/*"):
                # One that another process removes meanwhile counts for nothing.
                with contextlib.suppress(FileNotFoundError):
                    if path.stat().st_mtime < newest:
                        found.add(f"sha256:{path.parent.name}{path.name}")
        return frozenset(found)

    def digests_in(self, digest: str) -> frozenset[str]:
        """Find the digests that the content of a blob names; none where it is missing or no JSON.

        Raises:
            InvalidInput: It is not the digest of a blob.
            Unavailable: The disk cannot be read.
        """
        try:
            with _disk_errors("the blob cannot be read"), self._path(digest).open("rb") as file:
                start = file.read(1)
                return digests_in(start + file.read()) if start in _JSON_STARTS else frozenset()
        except FileNotFoundError:
            return frozenset()

    def sweep(self, keep: Container[str] | Callable[[str], bool], older_than_s: float) -> Swept:
        """Remove the blobs nobody names, and what dead writers left.

        A blob is put before the commit that names it, so `older_than_s` must be longer than any writer takes
        between the two, and than it took to gather `keep`; an hour is plenty.

        Args:
            keep: Digests that are named, or a function that says so.
            older_than_s: Only what was last put at least this long ago is removed, >= 0.

        Raises:
            Unavailable: The disk cannot be read or written.
        """
        is_kept = keep if callable(keep) else keep.__contains__
        oldest_kept = time.time() - older_than_s
        num_blobs = num_bytes = num_leftovers = 0
        with _disk_errors("the blob folder cannot be swept"):
            for path in self._incoming.iterdir():
                num_leftovers += self._remove_if_old(path, oldest_kept) is not None
            for folder in sorted(self._blobs.iterdir()):
                for path in folder.iterdir():
                    if path.name.endswith(_DAMAGED_SUFFIX):
                        num_leftovers += self._remove_if_old(path, oldest_kept) is not None
                        continue
                    digest = f"sha256:{folder.name}{path.name}"
                    if not _DIGEST.fullmatch(digest) or is_kept(digest):
                        continue
                    removed_bytes = self._remove_if_old(path, oldest_kept)
                    if removed_bytes is not None:
                        num_blobs, num_bytes = num_blobs + 1, num_bytes + removed_bytes
        return Swept(num_blobs, num_bytes, num_leftovers)

    def _remove_if_old(self, path: Path, oldest_kept: float) -> int | None:
        """Remove a file last written before an instant; return its size, None when it stays."""
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime >= oldest_kept:
                return None
            with self._lock(fcntl.LOCK_EX):
                # Looked at again under the lock: it may have been put again in between.
                found = path.stat()
                if found.st_mtime < oldest_kept:
                    path.unlink()
                    return found.st_size
        return None

    def _path(self, digest: str) -> Path:
        match = _DIGEST.fullmatch(digest)
        if match is None:
            # Nothing but hex may become a path.
            raise InvalidInput("not the digest of a blob")
        return self._blobs / match[1][:2] / match[1][2:]

    def _seal(self, digest: str) -> str:
        return hmac.new(self._key, digest.encode(), hashlib.sha256).hexdigest()[:_SEAL_CHARACTERS]

    def _read_key(self) -> bytes:
        """Read the folder's key; whoever comes first makes it."""
        path = self._root / "key"
        if not path.exists():
            with self._lock(fcntl.LOCK_EX):
                if not path.exists():
                    self._write(path, secrets.token_bytes(_KEY_BYTES))
                    _sync_folder(self._root)
        key = path.read_bytes()
        if len(key) != _KEY_BYTES:
            raise Unavailable(f"the key of the blob folder is damaged: {path}", _FULL_RETRY_AFTER_S)
        return key

    def _write(self, path: Path, content: bytes) -> None:
        incoming = self._incoming / secrets.token_hex(16)
        try:
            with open(os.open(incoming, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:  # noqa: PTH123
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            incoming.rename(path)
        except OSError:
            incoming.unlink(missing_ok=True)
            raise

    @contextlib.contextmanager
    def _lock(self, kind: int) -> Iterator[None]:
        # A file of its own for each use: flock belongs to the open file, and so works between threads too.
        lock = os.open(self._root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, kind)
            yield
        finally:
            os.close(lock)


def digests_in(raw: bytes) -> frozenset[str]:
    """Find all digests in encoded JSON, wherever they stand: rather too many than one too few."""
    return frozenset(found.decode() for found in _ANY_DIGEST.findall(raw))


def _digest_of(reference: dict[str, Any] | str) -> str:
    if isinstance(reference, str):
        return reference
    if not is_reference(reference):
        raise InvalidInput("not a reference to a blob")
    return str(reference["$blob"])


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _disk_errors(failed: str) -> Iterator[None]:
    """Turn what the disk says into one error with its reason; a missing file stays what it is."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise Unavailable(f"{failed}: the disk is full", _FULL_RETRY_AFTER_S) from error
        raise Unavailable(f"{failed}: {error.strerror}", _FULL_RETRY_AFTER_S) from error
