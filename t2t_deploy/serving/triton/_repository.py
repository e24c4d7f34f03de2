"""Model folders of a Triton repository: written whole or not at all, and only over our own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t2t_deploy import __version__
from t2t_deploy._files import (
    abandoned,
    file_sha256,
    locked_folder,
    remove,
    settle,
    sync_folder,
    temporary_folder,
)
from t2t_deploy._untrusted import MAX_MANIFEST_BYTES, json_from_file
from t2t_deploy.errors import ArtifactError
from t2t_deploy.serving.triton._config import (
    LABELS_FILE,
    MODEL_FILES,
    Service,
    ensemble_config,
    model_config,
    pbtxt,
    postprocess_config,
    preprocess_config,
)
from t2t_deploy.serving.triton._formats import ServingFormat

NOTE = "t2t-deploy.json"
_WHOSE, _HERE = "repository.txt", "."
CONFIG_FILE = "config.pbtxt"
_VERSION = "1"
# of an empty folder nothing is kept where a repository lies in an object store
_KEEP = f"{_VERSION}/.keep"
_SERVER = Path(__file__).parent / "_server"
_PACKAGE = Path(__file__).parents[2]
# What prepares images, and what that imports: a copy in the repository cannot differ from ours.
_TRANSFORM = ("_preparation.py", "errors.py", "images.py")
# What an instance asks: its share of the processors, and what they multiply exactly.
_MACHINE = ("_limits.py", "_processor.py")


_Files = Mapping[str, str | bytes | Path]
"""Of a folder: path within it -> text or content, or the file to copy."""


def check_folders(repository: Path, names: Sequence[str], *, served: bool = True) -> list[str]:
    """Names of the folders that would be replaced; what a killed command moved out is back first.

    served: as of `write_folders`. Raises ArtifactError where one is not ours, or was changed after
    it was written.
    """
    other = "--name" if served else "folder"
    if repository.exists() and not repository.is_dir():
        raise ArtifactError(f"{repository} is no folder; give one for the model repository")
    if repository.is_dir():
        resolved = repository.resolve()
        put_back(*((resolved.parent, resolved.name) if served else (resolved, _HERE)))
    replaced = []
    for name in names:
        folder = repository / name
        if not (folder.exists() or folder.is_symlink()):
            continue
        stated = _note(folder)
        if stated is None:
            raise ArtifactError(
                f"{folder} is there and not made by t2t-deploy package; move it away, or take "
                f"another {other}"
            )
        changed = _changes(folder, stated)
        if changed:
            raise ArtifactError(
                f"{folder} was changed after it was packaged ({', '.join(changed)}); move it away, "
                f"or take another {other}"
            )
        replaced.append(name)
    return replaced


def write_folders(
    repository: Path,
    folders: Mapping[str, _Files],
    about: Mapping[str, Any],
    *,
    served: bool = True,
) -> list[Path]:
    """Put model folders into a repository, in this order, each in one rename; returns them.

    folders: their files by name. about: what each folder's note says besides.
    served: whether a server looks at all of the repository, so that what is being written lies
    beside it, else in it. A server that polls the repository never sees half of a folder.
    What is replaced is moved out first, and back should the rename fail; where the command is
    killed between both, `check_folders` moves it back when it is called the next time. Call that
    before. Raises ArtifactError where the disk does not take it.
    """
    try:
        repository.mkdir(parents=True, exist_ok=True)
        resolved = repository.resolve()
        parent, whose = (resolved.parent, resolved.name) if served else (resolved, _HERE)
        with temporary_folder(parent, there=True) as staging:
            (staging / _WHOSE).write_text(whose, encoding="utf-8")
            for name, files in folders.items():
                _write(staging / "new" / name, files, about)
            (staging / "old").mkdir()
            with locked_folder(repository):
                return [_publish(staging, repository, name) for name in folders]
    except OSError as err:
        what = "the model repository" if served else "the page in"
        raise ArtifactError(
            f"cannot write {what} {repository}: {err.strerror or err}; free some space or choose "
            "another folder"
        ) from err


def _publish(staging: Path, repository: Path, name: str) -> Path:
    target, old = repository / name, staging / "old" / name
    replaces = target.exists()
    if replaces:
        target.rename(old)
    try:
        (staging / "new" / name).rename(target)
    except BaseException:
        if replaces:
            old.rename(target)
        raise
    sync_folder(repository)
    return target


def _write(target: Path, files: _Files, about: Mapping[str, Any]) -> None:
    hashes = {}
    for name, content in files.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copyfile(content, path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        settle(path)
        hashes[name] = file_sha256(path)
    note = {"t2t_deploy": __version__, **about, "files": hashes}
    (target / NOTE).write_text(json.dumps(note, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _note(folder: Path) -> dict[str, str] | None:
    """Hashes of what was written, by file; None where the folder is not ours."""
    try:
        files = json_from_file(folder / NOTE, MAX_MANIFEST_BYTES)["files"]
        return {str(name): str(digest) for name, digest in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _changes(folder: Path, stated: Mapping[str, str]) -> list[str]:
    """Files that were altered, removed or added; what Python compiled does not count."""
    there = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if not path.is_dir() and "__pycache__" not in path.parts
    }
    there.pop(NOTE, None)
    return [
        name
        for name in sorted(stated.keys() | there.keys())
        if name not in stated or name not in there or file_sha256(there[name]) != stated[name]
    ]


def put_back(parent: Path, repository: str | None = None) -> None:
    """Undo what killed commands left half done in the repositories of a folder, or in one.

    Where one was killed between moving a model out and the new one in, the old one is moved back.
    """
    for staging in abandoned(parent, below=False):
        try:
            name = (staging / _WHOSE).read_text(encoding="utf-8")
        except (OSError, ValueError):
            continue
        if repository not in (None, name) or (name != _HERE and Path(name).name != name):
            continue
        for old in (staging / "old").glob("*"):
            if not (parent / name / old.name).exists():
                old.rename(parent / name / old.name)
        remove(staging)


def service_folders(service: Service, model: Path, manifest: Path | None) -> dict[str, _Files]:
    """The files of all folders, the ensemble last.

    model: the artifact's file. manifest: of the artifact, to lie beside it.
    """
    file = f"{_VERSION}/{MODEL_FILES[service.format]}"
    files: dict[str, str | bytes | Path] = {CONFIG_FILE: pbtxt(model_config(service)), file: model}
    if manifest is not None:
        files[f"{file}.manifest.json"] = manifest
    if service.format is ServingFormat.PYTHON:
        files |= {f"{_VERSION}/model.py": _SERVER / "classifier.py", **_copied(_MACHINE)}
    labels: dict[str, str | bytes | Path] = {}
    if service.labels:
        labels[LABELS_FILE] = "".join(f"{label}\n" for label in service.labels)
    folders: dict[str, _Files] = {
        service.name: files | labels,
        service.preprocess_name: {
            CONFIG_FILE: pbtxt(preprocess_config(service)),
            f"{_VERSION}/model.py": _SERVER / "preprocess.py",
            **_copied(_TRANSFORM),
        },
    }
    if service.classifies:
        folders[service.postprocess_name] = {
            CONFIG_FILE: pbtxt(postprocess_config(service)),
            f"{_VERSION}/model.py": _SERVER / "postprocess.py",
            **labels,
        }
    ensemble = {CONFIG_FILE: pbtxt(ensemble_config(service)), _KEEP: ""}
    return {**folders, service.ensemble_name: ensemble}


def _copied(modules: Sequence[str]) -> _Files:
    """Modules of this package beside a step's own, in a package that loads nothing else."""
    folder = f"{_VERSION}/t2t_deploy"
    return {f"{folder}/__init__.py": "", **{f"{folder}/{n}": _PACKAGE / n for n in modules}}
