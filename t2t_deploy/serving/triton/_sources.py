"""Modules of our own that travel with a model: copied as they are, so that they cannot differ."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

_PACKAGE = "t2t_deploy"
_ROOT = Path(__file__).parents[2]


def server_file(name: str) -> str:
    """Text of a Python model that runs inside Triton."""
    return (Path(__file__).parent / "_server" / f"{name}.py").read_text(encoding="utf-8")


def own_sources(module: str) -> dict[str, str]:
    """Texts of a module of this package and of all of the package that it imports as it runs.

    Returns them by their path below a folder that is put on ``sys.path``.
    """
    found: dict[str, str] = {}
    waiting = [_PACKAGE, module]
    while waiting:
        path = _file_of(waiting.pop())
        place = path.relative_to(_ROOT.parent).as_posix()
        if place not in found:
            found[place] = path.read_text(encoding="utf-8")
            waiting += _imported(found[place])
    return dict(sorted(found.items()))


def _file_of(module: str) -> Path:
    path = _ROOT.parent.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _imported(text: str) -> Iterator[str]:
    for node in _run(ast.parse(text)):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == _PACKAGE:
                # importing a module runs the packages it lies in
                yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _run(node: ast.AST) -> Iterator[ast.AST]:
    """A node and what is below it, but what only a type checker reads."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from _run(child)
