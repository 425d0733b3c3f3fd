"""What a run's processes wrote to their logs, kept when its temporary folder goes.

Ray writes below that folder, because its sockets need a short path. The last run's logs are enough to say why
a service ended; shipping logs for longer is the operator's business. It never fails a stop or a start: what
cannot be copied is left out.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

__all__ = ["KEPT", "keep_logs"]

KEPT = "last"
"""Name of the folder below the data directory's `logs`."""

_MAX_BYTES = 32 * 1024 * 1024
_MAX_FILE_BYTES = 2 * 1024 * 1024
_FIRST = ("worker-", "serve/")
"""What our own processes said goes before what Ray's did."""


def keep_logs(
    source: Path, logs_dir: Path, max_bytes: int = _MAX_BYTES, max_file_bytes: int = _MAX_FILE_BYTES
) -> None:
    """Copy the logs of a run that ended to `logs_dir/last`, in place of those of the run before.

    Args:
        source: Folder that Ray wrote to; nothing happens where it is missing or empty.
        logs_dir: Folder of logs of the data directory.
        max_bytes: Bound of all that is kept, in bytes.
        max_file_bytes: Bound for one file, in bytes; its end is kept.
    """
    draft = logs_dir / f"{KEPT}.new"
    shutil.rmtree(draft, ignore_errors=True)
    left_bytes = max_bytes
    with contextlib.suppress(OSError):
        for path in _files(source):
            size = min(path.stat().st_size, max_file_bytes, left_bytes)
            if size:
                _copy_end(path, draft / path.relative_to(source), size)
                left_bytes -= size
    with contextlib.suppress(OSError):
        if draft.is_dir():
            shutil.rmtree(logs_dir / KEPT, ignore_errors=True)
            draft.replace(logs_dir / KEPT)


def _files(source: Path) -> list[Path]:
    found = [path for path in source.rglob("*") if path.is_file() and not path.is_symlink()]
    return sorted(found, key=lambda path: (not str(path.relative_to(source)).startswith(_FIRST), path))


def _copy_end(source: Path, target: Path, size: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as file:
        file.seek(-size, 2)
        target.write_bytes(file.read(size))
