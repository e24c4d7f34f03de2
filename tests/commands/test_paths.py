"""Paths in Python: text, Path or any path-like object, one or several, of each public function."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest

import t2t_deploy
from t2t_deploy import Artifact, Workspace, inspect_artifact, predict_images, verify_artifacts
from t2t_deploy._options import Parameter, parameters
from t2t_deploy.errors import ArtifactError, UsageError
from t2t_deploy.workspace import manifest_path_for, read_manifest

from ..noise import write_noise
from ..small import tiny_exports


class Entry:
    """As `os.DirEntry`, and as pytest's `py.path`: path-like, and not a Path."""

    def __init__(self, path: Any) -> None:
        self.path = path

    def __fspath__(self) -> Any:
        return self.path


FORMS: tuple[Callable[[str], Any], ...] = (str, Path, Entry)
NO_PATHS: tuple[Any, ...] = (5, 0.5, b"a", Entry(b"a"), Entry(5), object(), [5], {"a": 1}.values())
# the function is not reached: whatever else it must be given
REQUIRED = {"receive": print, "triton": "made", "output": "made"}


def takes_paths(hint: Any) -> bool:
    return hint is Path or get_origin(hint) is os.PathLike or any(map(takes_paths, get_args(hint)))


def path_parameters(function: Callable[..., Any]) -> Iterator[str]:
    hints = get_type_hints(inspect.unwrap(function), include_extras=True)
    yield from (n for n, hint in hints.items() if n != "return" and takes_paths(hint))


PUBLIC = [getattr(t2t_deploy, name) for name in t2t_deploy.__all__]
FUNCTIONS = [one for one in PUBLIC if inspect.isfunction(one)]
EVERY = [(function, name) for function in FUNCTIONS for name in path_parameters(function)]
DECLARED = [parameters(f)[n] for f, n in EVERY if n in parameters(f)]


def ids(value: Any) -> str:
    return str(getattr(value, "__name__", getattr(value, "name", value)))


def name_for(parameter: Parameter) -> str:
    """A name that the parameter may have, whose kind may be of an ending."""
    _, ending, suffix = parameter.kind.expected.rpartition(" ends in ")
    return f"a{suffix.split()[0]}" if ending else "a"


def test_every_function_is_walked() -> None:
    names = {function.__name__ for function, _ in EVERY}
    assert names == {one.__name__ for one in FUNCTIONS} - {"examine_machine"}
    assert {name for f, name in EVERY if name not in parameters(f)} == {"workspace", "recipe"}
    assert {p.name for p in DECLARED if p.kind.several} == {"artifacts", "images"}


@pytest.mark.parametrize("parameter", DECLARED, ids=ids)
def test_each_form_of_a_path_is_the_same(parameter: Parameter) -> None:
    name = name_for(parameter)
    alone = [parameter.read(form(name)) for form in FORMS]
    assert len(set(alone)) == 1
    if parameter.kind.several:
        (expected,) = alone[0]
        forms = [form(name) for form in FORMS]
        for several in (forms, tuple(forms), iter(forms)):
            assert parameter.read(several) == (expected,) * 3
        assert isinstance(expected, str if parameter.name == "images" else Path)
    else:
        assert alone[0] == Path(name)


@pytest.mark.parametrize(("function", "name"), EVERY, ids=ids)
def test_what_is_no_path_is_said(function: Callable[..., Any], name: str) -> None:
    write_noise(Path("x.png"))
    needed = {
        parameter.name: REQUIRED.get(parameter.name, "x.png")
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty
    }
    wrong = NO_PATHS if name not in needed else (*NO_PATHS, None)
    for value in wrong:
        with pytest.raises(UsageError, match=f"^{name} is .*; expected ") as caught:
            function(**{**needed, name: value})
        assert "\n" not in str(caught.value)
    assert {path.name for path in Path().iterdir()} <= {"made", "x.png"}


def test_each_form_goes_through(tmp_path: Path) -> None:
    (made,) = tiny_exports(tmp_path, {}).artifacts()
    write_noise(*(tmp_path / "pictures" / f"{index}.png" for index in range(3)))
    for form in FORMS:
        file, root = form(str(made.path)), form("artifacts")
        assert [found.failed for found in verify_artifacts(file, workspace=root)] == [False]
        assert inspect_artifact(file, workspace=root)["path"] == str(made.path)
        folder = form("pictures")
        images = [form(f"pictures/{index}.png") for index in range(3)]
        for given in (folder, images, tuple(images), iter(images)):
            done = predict_images(file, given, receive=lambda _: None, workspace=root)
            assert (done.images, done.failed) == (3, False)
    assert len(verify_artifacts(None, workspace="artifacts")) == 1  # type: ignore[arg-type]


def test_methods_take_each_form(tmp_path: Path) -> None:
    (made,) = tiny_exports(tmp_path, {}).artifacts()
    known = made.require_manifest()
    write_noise(tmp_path / "x.png")
    walked = {
        f"{kind.__name__}.{name}"
        for kind in (Artifact, Workspace)
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if (name == "__init__" or not name.startswith("_")) and any(path_parameters(method))
    }
    assert walked == {
        "Artifact.__init__",
        "Workspace.__init__",
        *(f"Workspace.{name}" for name in ("of_unknown_owner", "open", "prune", "store")),
    }

    def write(path: Path) -> dict[str, Any]:
        path.write_bytes(b"x")
        return {}

    for form in FORMS:
        workspace = Workspace(form("artifacts"))
        assert workspace.open(form(str(made.path))) == made
        assert workspace.open(form(made.path.name)).manifest == known
        assert Artifact(form("a.engine"), None).kind == "engine"
        stored = workspace.store(known, write, stem="a", output=form("b"))
        assert stored.path == Path("b")
        assert workspace.prune(also=form(".")) == workspace.prune(also=[form(".")]) == []
        assert workspace.of_unknown_owner(form(".")) == []
        assert read_manifest(form(str(manifest_path_for(form(str(made.path)))))) == known
    for value in NO_PATHS:
        for call in (Workspace, Workspace("a").open, manifest_path_for, read_manifest):
            with pytest.raises(UsageError, match=r"^(root|path) is .*; expected a path"):
                call(value)
        with pytest.raises(UsageError, match=r"^path is "):
            Artifact(value, None)
    with pytest.raises(ArtifactError, match="there is no artifact nowhere"):
        Workspace("a").open("nowhere")
