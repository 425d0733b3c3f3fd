"""The logs of the last run outlive its temporary folder, within bounds."""

from __future__ import annotations

from pathlib import Path

from serve_app.launch.kept_logs import keep_logs


def _session(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def _kept(logs_dir: Path) -> dict[str, str]:
    last = logs_dir / "last"
    return {str(path.relative_to(last)): path.read_text() for path in last.rglob("*") if path.is_file()}


def test_logs_of_the_last_run_take_the_place_of_those_before(tmp_path: Path) -> None:
    logs_dir = tmp_path / "logs"
    keep_logs(_session(tmp_path / "one", old="1"), logs_dir)
    keep_logs(_session(tmp_path / "two", raylet="2", serve__replica="3", empty=""), logs_dir)
    assert _kept(logs_dir) == {"raylet": "2", "serve/replica": "3"}
    assert [path.name for path in logs_dir.iterdir()] == ["last"]


def test_run_that_wrote_nothing_leaves_the_logs_of_the_one_before(tmp_path: Path) -> None:
    keep_logs(_session(tmp_path / "one", old="1"), tmp_path / "logs")
    keep_logs(tmp_path / "nowhere", tmp_path / "logs")
    assert _kept(tmp_path / "logs") == {"old": "1"}


def test_bounds_keep_the_end_of_each_file_and_our_own_processes_first(tmp_path: Path) -> None:
    source = _session(tmp_path / "one", **{"a": "AAAA", "worker-1": "0123456789", "serve__r": "xyz"})
    keep_logs(source, tmp_path / "logs", max_bytes=8, max_file_bytes=4)
    assert _kept(tmp_path / "logs") == {"serve/r": "xyz", "worker-1": "6789", "a": "A"}


def test_logs_that_cannot_be_kept_stop_nothing(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where a folder should be")
    keep_logs(_session(tmp_path / "one", old="1"), tmp_path / "logs")
