"""`__all__` says what a module gives to others: every public function and class, nothing that is missing."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    path.relative_to(ROOT)
    for package in ("cluster", "actors", "serve_app")
    for path in (ROOT / package).rglob("*.py")
    if not path.name.startswith("_")
)


def public_definitions(tree: ast.Module) -> set[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")}


def all_names(tree: ast.Module) -> set[str]:
    """Everything a module's top level binds: definitions, constants, imports."""
    names = public_definitions(tree)
    for node in tree.body:
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def exported_names(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and "__all__" in {
            target.id for target in node.targets if isinstance(target, ast.Name)
        }:
            return list(ast.literal_eval(node.value))
    return None


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_all_names_what_the_module_defines(module: Path) -> None:
    tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
    exported = exported_names(tree)
    assert exported is not None, f"{module} has no __all__"
    assert sorted(set(exported)) == sorted(exported), f"{module}: a name stands twice"
    assert public_definitions(tree) - set(exported) == set(), f"{module}: defined but not exported"
    assert set(exported) - all_names(tree) == set(), f"{module}: exported but not there"
