"""A folder of artifacts: what is in it, and how something comes into it."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2t_deploy._codec import from_plain, to_plain
from t2t_deploy._files import (
    TEMPORARY,
    abandoned,
    file_sha256,
    make_folder,
    publish,
    remove,
    settle,
    temporary_file,
    temporary_folder,
    try_to_write,
    write_text,
)
from t2t_deploy._options import PATHS, AnyPath, AnyPaths, path_of
from t2t_deploy._untrusted import MAX_MANIFEST_BYTES, first_line, json_from_file
from t2t_deploy.errors import ArtifactError
from t2t_deploy.workspace._artifact import (
    Artifact,
    artifact_of_file,
    change_manifest,
    keep_finished,
    replace_file,
)
from t2t_deploy.workspace._locks import CHANGES, FOLDER, LockPolicy, has_locks, is_locked, locked
from t2t_deploy.workspace._manifest import (
    MANIFEST_SUFFIX,
    Manifest,
    manifest_path_for,
    manifest_text,
    read_manifest,
    tool_versions,
)

BEST = "@best"
TUNE = "tune"
"""Folder of a workspace: what `tune` measured, its recipe and its pick."""
_FILE = "best.json"


@dataclass(frozen=True, slots=True)
class Best:
    """What was picked, and for what.

    artifact: relative to the workspace where it lies in it. streams: callers at once. device: of
    the GPU; None is the CPU, or none for a pick that was not timed.
    """

    artifact: str
    sha256: str
    backend: str
    goal: str
    batch: int
    threads: int
    streams: int = 1
    device: int | None = None


def write_best(root: Path, best: Best) -> None:
    """Make it the workspace's pick. Raises ArtifactError."""
    write_text(root / TUNE / _FILE, manifest_text(to_plain(best)))


def read_best(root: Path) -> Best:
    """The workspace's pick. Raises ArtifactError where there is none."""
    path = root / TUNE / _FILE
    try:
        return from_plain(Best, json_from_file(path, MAX_MANIFEST_BYTES))
    except FileNotFoundError:
        raise ArtifactError(f"workspace {root} has no {BEST}: t2t-deploy tune picks it") from None
    except (OSError, ValueError) as err:
        raise ArtifactError(f"{path} cannot be read ({first_line(err)}); tune again") from err


_FOLDERS = {"onnx": "onnx", "engine": "engines"}
# what runtimes compiled here, and the times builders measured
_COMPILED = ("cache", "timing")
CALIBRATION = "calibration"
PARTIAL = ".partial"
"""Suffix of the sums of a calibration under way; its stem names the calibration's lock."""


@dataclass(frozen=True, slots=True)
class WorkspaceCheck:
    """How many artifacts were compared with their manifests, and what is wrong, a line each.

    leftovers: of killed commands; they harm nothing and take space. unknown: temporary files that
    a command may be writing, or a killed one left: nobody can know here.
    """

    artifacts: int
    problems: tuple[str, ...]
    leftovers: tuple[Path, ...] = ()
    unknown: tuple[Path, ...] = ()


class Workspace:
    """A folder of artifacts. Nothing is created before something is stored.

    lock_policy: what to do where another command works on the same; ``patience`` is its former
    name. Reading waits for nobody.
    """

    def __init__(
        self,
        root: AnyPath,
        lock_policy: LockPolicy | None = None,
        *,
        patience: LockPolicy | None = None,
    ) -> None:
        self.root = path_of(root, "root")
        self.lock_policy = lock_policy or patience or LockPolicy()

    def artifacts(self, kind: str | None = None) -> list[Artifact]:
        """All artifacts, oldest first. Raises ArtifactError for an unreadable manifest."""
        found = [Artifact(self._file(path), read_manifest(path)) for path in self._manifests(kind)]
        return sorted(found, key=lambda artifact: artifact.require_manifest().sequence)

    def check(self) -> WorkspaceCheck:
        """Compare every file, and all weights, with what is written of them."""
        problems: list[str] = []
        count = 0
        users: dict[str, str] = {}
        for path in self._manifests():
            try:
                read_manifest(path)
                count += 1
                artifact = _whole(self._file(path))
                manifest = artifact.require_manifest()
                if manifest.outdated is not None:
                    problems.append(f"{artifact.path}: {manifest.outdated}")
                if manifest.weights_sha256 is not None:
                    users.setdefault(manifest.weights_sha256, artifact.path.name)
            except ArtifactError as err:
                problems.append(str(err))
        stored = {path.stem for path in finished(self.root / "weights", "*.safetensors")}
        for sha256 in sorted(stored | users.keys()):
            try:
                self.weights_path(sha256, users.get(sha256, ""))
            except ArtifactError as err:
                problems.append(str(err))
        leftovers, unknown = tuple(self._leftovers()), tuple(self.of_unknown_owner())
        return WorkspaceCheck(count, tuple(problems), leftovers, unknown)

    def newest(
        self,
        kind: str,
        suits: Callable[[Manifest], bool] = lambda manifest: True,
        *,
        force: bool = False,
    ) -> Artifact:
        """The last artifact made that suits; one that failed a check only with ``force``.

        Raises ArtifactError saying what to run.
        """
        suitable = [a for a in self.artifacts(kind) if suits(a.require_manifest())]
        usable = [a for a in suitable if force or not a.require_manifest().failed]
        if usable:
            return usable[-1]
        if suitable:
            last = suitable[-1]
            raise ArtifactError(
                f"every suitable {kind} artifact of workspace {self.root} failed its check, the "
                f"newest being {last.path.name} ({last.require_manifest().failure}); fix the cause "
                "and re-export, or use --force"
            )
        make = "export" if kind == "onnx" else "build-trt"
        raise ArtifactError(
            f"workspace {self.root} has no suitable {kind} artifact; make one first: "
            f"t2t-deploy {make}"
        )

    def open(self, path: AnyPath, *, force: bool = False) -> Artifact:
        """An artifact by its file, its content checked against its manifest.

        path: ``@best`` is what `tune` picked. Raises ArtifactError where it is missing, altered, or
        failed a check and ``force`` is off.
        """
        path = path_of(path, "path")
        if str(path) == BEST:
            return self._best(force=force)
        if not os.path.isfile(path) and (inside := self._find(path.name)) is not None:
            path = inside
        if not os.path.isfile(path):  # False as well for a name that no file can have
            raise ArtifactError(
                f"there is no artifact {path}; 't2t-deploy workspace list' shows what there is"
            )
        artifact = artifact_of_file(path)
        return artifact if artifact.manifest is None else self._usable(artifact, force=force)

    def _best(self, *, force: bool) -> Artifact:
        best = read_best(self.root)
        artifact = self.open(self.root / best.artifact, force=force)
        if artifact.require_manifest().sha256 != best.sha256:
            raise ArtifactError(f"{artifact.path} was made anew since it was picked; tune again")
        return artifact

    def checked(self, artifact: Artifact, *, force: bool = False) -> Artifact:
        """The artifact, once its content matches its manifest. Raises as `open`."""
        return self._usable(_whole(artifact.path), force=force)

    def _usable(self, artifact: Artifact, *, force: bool) -> Artifact:
        manifest = artifact.require_manifest()
        if manifest.failed and not force:
            raise ArtifactError(
                f"{artifact.path} failed its check ({manifest.failure}); fix the cause and "
                "re-export, or use --force"
            )
        return artifact

    def weights(self, manifest: Manifest) -> Path:
        """The stored weights an artifact was made from, checked. Raises ArtifactError."""
        return self.weights_path(manifest.weights["sha256"], manifest.file)

    def weights_path(self, sha256: str, user: str = "an artifact") -> Path:
        """Stored weights by the hash of their content, checked. Raises ArtifactError."""
        path = self.root / "weights" / f"{sha256}.safetensors"
        if not path.is_file():
            raise ArtifactError(
                f"workspace {self.root} lacks the weights {sha256[:12]} of {user}; use "
                "the workspace it was exported in, or export it again here"
            )
        if file_sha256(path) != sha256:
            raise ArtifactError(f"{path} was altered; remove it and export again")
        return path

    def cache(self, name: str) -> Path | None:
        """Where a runtime may keep what it compiled; None in a workspace that is not written."""
        return self.root / "cache" / name if os.access(self.root, os.W_OK) else None

    def _manifests(self, kind: str | None = None) -> list[Path]:
        folders = _FOLDERS.values() if kind is None else (_FOLDERS[kind],)
        found = ((self.root / folder).glob(f"*{MANIFEST_SUFFIX}") for folder in folders)
        return sorted(itertools.chain.from_iterable(found))

    @staticmethod
    def _file(manifest: Path) -> Path:
        return manifest.with_name(manifest.name.removesuffix(MANIFEST_SUFFIX))

    def _find(self, name: str) -> Path | None:
        candidates = (self.root / folder / name for folder in _FOLDERS.values())
        return next((path for path in candidates if os.path.isfile(path)), None)

    def store_weights(self, write: Callable[[Path], None]) -> str:
        """Keep weights under the hash of their content; returns it."""
        folder = self.folder("weights")
        with temporary_file(folder, ".safetensors") as temporary:
            write(temporary)
            sha256 = file_sha256(temporary)
            publish(temporary, folder / f"{sha256}.safetensors")
        return sha256

    def store(
        self,
        manifest: Manifest,
        write: Callable[[Path], Mapping[str, Any]],
        *,
        stem: str,
        output: AnyPath | None = None,
    ) -> Artifact:
        """Write a file and its manifest; the content's facts in the manifest are filled in.

        write: makes the file at the path it is given and returns the manifest fields it learned.
        output: where to write instead of the workspace, over what is there.
        """
        suffix = ".onnx" if manifest.kind == "onnx" else ".engine"
        target = None if output is None else path_of(output, "output")
        folder = self.folder(_FOLDERS[manifest.kind]) if target is None else target.parent
        make_folder(folder)
        with temporary_file(folder, suffix) as temporary:
            learned = write(temporary)
            sha256 = file_sha256(temporary)
            path = target or folder / f"{stem}-{sha256[:8]}{suffix}"
            complete = dataclasses.replace(
                manifest,
                file=path.name,
                sha256=sha256,
                size_bytes=temporary.stat().st_size,
                tools=tool_versions(),
                created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                **learned,
            )
            try:
                settle(temporary)  # before the lock: it may take long
                with self.lock():
                    complete = dataclasses.replace(complete, sequence=self._next_sequence())
                    if output is not None:
                        replace_file(temporary, path, complete)
                    else:
                        # A file of this name has this content: the manifest comes last, so that
                        # each has its file.
                        publish(temporary, path)
                        write_text(manifest_path_for(path), complete.to_json())
            except (OSError, ArtifactError) as err:
                raise keep_finished(temporary, path, complete, err) from err
        return Artifact(path, complete)

    def update(self, artifact: Artifact, **changes: Any) -> Artifact:
        """Replace fields of a manifest as it is now, the file unchanged; ``details`` are added.

        Raises ArtifactError where the file was made anew meanwhile.
        """
        with self.lock():
            return change_manifest(artifact, changes)

    def lock(self, name: str = CHANGES) -> AbstractContextManager[None]:
        """Keep other commands from what only one may do at a time.

        name: of the work; by default the moments in which manifests change. Raises BusyError.
        """
        return locked(self.root, name, self.lock_policy)

    def check_writable(self, *folders: str, say: Callable[[str], None] | None = None) -> None:
        """Find out before long work whether its files can be written and the workspace locked.

        folders: those to be written to. say: who is told, once, that files cannot be locked here.
        Nothing is left. Raises ArtifactError, BusyError.
        """
        for name in folders:
            try_to_write(self.root / name)
        has_locks(self.root, self.lock_policy, say)
        if (self.root / FOLDER).is_dir():  # without it, nobody can have the lock
            with self.lock():
                pass

    def scratch(self) -> AbstractContextManager[Path]:
        """A folder for files of the moment, in the workspace where that is there to be written."""
        return temporary_folder(self.root)

    def write_log(self, name: str, text: str) -> Path:
        """Keep a log; returns its path."""
        path = self.folder("logs") / name
        write_text(path, text)
        return path

    def prune(self, *, also: AnyPaths = (), compiled: bool = False) -> list[Path]:
        """Remove what killed commands left behind; returns it.

        also: other folders that commands wrote to, in which, not below, it lies as well.
        compiled: also what runtimes compiled here, which they then do again. Weights and logs are
        never removed: an artifact written elsewhere with ``-o`` may need them.
        """
        removed = [path for folder in PATHS.read(also) for path in abandoned(folder, below=False)]
        with contextlib.ExitStack() as stack:
            if self.root.is_dir():
                stack.enter_context(self.lock())
                removed += self._leftovers()
            if compiled:
                removed += [p for name in _COMPILED if (p := self.root / name).is_dir()]
            for path in removed:
                remove(path)
        return removed

    def of_unknown_owner(self, also: AnyPaths = ()) -> list[Path]:
        """Temporary files that `prune` leaves, because another machine may be writing them.

        There are such where files cannot be locked. also: as for `prune`.
        """
        folders = PATHS.read(also)
        found = [path for folder in folders for path in abandoned(folder, below=False, sure=False)]
        return found + abandoned(self.root, sure=False)

    def folder(self, name: str) -> Path:
        """A folder of the workspace, made if need be. Raises ArtifactError."""
        folder = self.root / name
        make_folder(folder)
        return folder

    def _leftovers(self) -> Iterator[Path]:
        """What killed commands left: unfinished files, sums of ranges, a file without manifest."""
        yield from abandoned(self.root)
        for path in finished(self.root / CALIBRATION, f"*{PARTIAL}"):
            if not is_locked(self.root, path.stem):
                yield path
        for pattern in ("onnx/*.onnx", "engines/*.engine"):
            for path in finished(self.root, pattern):
                # ours beyond doubt: a name that holds the content's hash
                stem = "" if manifest_path_for(path).exists() else path.stem.rpartition("-")[2]
                if stem and path.is_file() and file_sha256(path).startswith(stem):
                    yield path

    def _next_sequence(self) -> int:
        """One more than any readable manifest has; a damaged one elsewhere stops nobody."""
        sequences = [0]
        for path in self._manifests():
            with contextlib.suppress(ArtifactError):
                sequences.append(read_manifest(path).sequence)
        return max(sequences) + 1


def finished(folder: Path, pattern: str) -> list[Path]:
    """Files by a pattern, without those that a command is, or was, writing."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith(TEMPORARY))


def _whole(path: Path) -> Artifact:
    """The artifact that a manifest is of, its content checked. Raises ArtifactError."""
    if not path.is_file():
        raise ArtifactError(f"{path} is gone, its manifest is not; make it again")
    return artifact_of_file(path)
