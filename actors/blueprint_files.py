"""Where blueprints come from: the shipped ones, entry points `tutti.blueprints`, and the operator's folder.

A Python file is executed to learn its blueprints. Its text is kept by its digest in the data directory, and
handlers are called from there: a job that began with one version of a file ends with it, whatever happens to
the file. A file that cannot be used is told of and left out; the others are loaded.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import msgspec

from actors.blueprint import Blueprint
from actors.blueprint_yaml import read_blueprints
from cluster.errors import InvalidPlan, NotFound

__all__ = ["CodeArchive", "FoundBlueprint", "LoadProblem", "LoadReport", "find_blueprints", "folder_state"]

_GROUP = "tutti.blueprints"
_SHIPPED = Path(__file__).with_name("blueprints")
_MODULE_PREFIX = "tutti_blueprint_code_"


class FoundBlueprint(NamedTuple):
    """A blueprint and where it stands; `code` is the digest of its file's text."""

    blueprint: Blueprint
    origin: str
    code: str


class LoadProblem(NamedTuple):
    """What could not be used, and why."""

    origin: str
    reason: str


class LoadReport(NamedTuple):
    """What was found, and what could not be used."""

    found: list[FoundBlueprint]
    problems: list[LoadProblem]


class _Code(msgspec.Struct, frozen=True):
    """A file's text, and the package whose neighbours it may import."""

    package: str
    path: str
    text: str


class CodeArchive:
    """Texts of Python files by digest, in one folder; written by ingress replicas, read by agents."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._blueprints: dict[str, dict[str, Blueprint]] = {}

    def keep(self, code: _Code) -> str:
        """Write a text, once.

        Returns:
            Its digest.
        """
        digest = _digest(code)
        path = self._folder / f"{digest}.json"
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            draft = path.with_suffix(f".{id(self):x}.tmp")
            draft.write_bytes(msgspec.json.encode(code))
            draft.replace(path)
        return digest

    def blueprints(self, digest: str) -> dict[str, Blueprint]:
        """Return the blueprints of a text by name, executing it where this was not done yet.

        Raises:
            NotFound: No text of this digest was kept, or it is not what was kept.
            Exception: Whatever the text raises.
        """
        found = self._blueprints.get(digest)
        if found is None:
            found = self._blueprints[digest] = {
                each.name: each for each in _blueprints_of(_execute(self._read(digest), digest))
            }
        return found

    def _read(self, digest: str) -> _Code:
        if len(digest) != 32 or not set(digest) <= set("0123456789abcdef"):
            raise NotFound("there is no code of this digest")
        try:
            code = msgspec.json.decode((self._folder / f"{digest}.json").read_bytes(), type=_Code)
        except (OSError, msgspec.MsgspecError):
            raise NotFound(f"the code {digest} was not kept") from None
        if _digest(code) != digest:
            raise NotFound(f"the code {digest} was changed after it was kept")
        return code


def _digest(code: _Code) -> str:
    return hashlib.blake2b(f"{code.package}\0{code.text}".encode(), digest_size=16).hexdigest()


def _execute(code: _Code, digest: str) -> ModuleType:
    """Make a module of a text. It is known to the interpreter: annotations and pickles look it up."""
    name = _MODULE_PREFIX + digest
    module = ModuleType(name)
    module.__file__, module.__package__ = code.path, code.package
    sys.modules[name] = module
    try:
        exec(compile(code.text, code.path, "exec"), module.__dict__)  # noqa: S102 - the operator's own file
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _blueprints_of(module: ModuleType) -> list[Blueprint]:
    """List what a module defines; what it imported from elsewhere is there too, once."""
    return list({id(each): each for each in vars(module).values() if isinstance(each, Blueprint)}.values())


def find_blueprints(folder: Path | None, archive: CodeArchive) -> LoadReport:
    """Find all blueprints; those of the folder go before entry points, these before the shipped ones."""
    report = LoadReport([], [])
    for path in _files(_SHIPPED):
        _take_file(path, "actors.blueprints", archive, report)
    for point in entry_points(group=_GROUP):
        _take_entry_point(point, archive, report)
    if folder is not None:
        if not folder.is_dir():
            report.problems.append(LoadProblem(str(folder), "there is no such folder"))
        for path in _files(folder):
            _take_file(path, "", archive, report)
    return report


def folder_state(folder: Path | None) -> tuple[tuple[str, int, int], ...]:
    """Tell files, times and sizes of a folder: another value asks for loading again."""
    if folder is None:
        return ()
    state = []
    for path in _files(folder):
        try:
            status = path.stat()
        except OSError:
            continue  # it has just gone
        state.append((path.name, status.st_mtime_ns, status.st_size))
    return tuple(state)


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.glob("*")):
        if path.suffix in {".py", ".yaml", ".yml"} and not path.name.startswith(("_", ".")):
            yield path


def _take_file(path: Path, package: str, archive: CodeArchive, report: LoadReport) -> None:
    try:
        text = path.read_text("utf-8")
        if path.suffix == ".py":
            _take_code(_Code(package, str(path), text), str(path), archive, report)
        else:
            report.found.extend(FoundBlueprint(each, str(path), "") for each in read_blueprints(text))
    except InvalidPlan as error:
        report.problems.append(LoadProblem(str(path), error.message))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - foreign code: one bad file must not keep the others out
        report.problems.append(LoadProblem(str(path), f"{type(error).__name__}: {error}"))


def _take_entry_point(point: EntryPoint, archive: CodeArchive, report: LoadReport) -> None:
    origin = f"entry point {point.value}"
    try:
        module = import_module(point.module)
        path = Path(str(module.__file__))
        code = _Code(module.__package__ or "", str(path), path.read_text("utf-8"))
        _take_code(code, origin, archive, report, point.attr)
    except InvalidPlan as error:
        report.problems.append(LoadProblem(origin, error.message))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - foreign code: one bad package must not keep the others out
        report.problems.append(LoadProblem(origin, f"{type(error).__name__}: {error}"))


def _take_code(code: _Code, origin: str, archive: CodeArchive, report: LoadReport, only: str = "") -> None:
    digest = archive.keep(code)
    for each in archive.blueprints(digest).values():
        if not only or getattr(sys.modules[_MODULE_PREFIX + digest], only, None) is each:
            report.found.append(FoundBlueprint(each, origin, digest))
