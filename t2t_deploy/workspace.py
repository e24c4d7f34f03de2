"""Artifacts with lineage: files that are written whole, named by content and known by manifest.

    <workspace>/onnx/<name>-<sha>.onnx          + .manifest.json
    <workspace>/engines/<name>-<sha>.engine     + .manifest.json
    <workspace>/weights/<sha>.safetensors       each set of weights once
    <workspace>/calibration/<name>-<key>.ranges what pictures said of a graph
    <workspace>/logs/, <workspace>/bench/       builder logs, measurements

A manifest lies beside its file and names it without a folder, so a workspace can be moved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import importlib.metadata
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t2t_deploy import __version__
from t2t_deploy._files import MAX_MANIFEST_BYTES, first_line, json_from_file
from t2t_deploy._manifest_check import check_manifest_values
from t2t_deploy.errors import ArtifactError
from t2t_deploy.types import Precision, Status

MANIFEST_VERSION = 1
MANIFEST_SUFFIX = ".manifest.json"
_CHECKSUM = "checksum"
_TEMPORARY = ".t2t-tmp-"
_ENGINE_SUFFIXES = frozenset({".engine", ".plan", ".trt"})
_FOLDERS = {"onnx": "onnx", "engine": "engines"}
_TOOLS = (
    "torch",
    "onnx",
    "onnxsim",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx-cu13-bindings",
    "numpy",
)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an artifact is and where it came from.

    kind: onnx or engine. file: its name beside the manifest. batch: fixed size, None for dynamic.
    weights: {"sha256", "source"} of the safetensors in the workspace. parents: {"kind", "file",
    "sha256"} of what it was made from. sequence: order of making within a workspace, independent
    of the clock. details: figures of this kind of artifact.
    """

    kind: str
    file: str
    sha256: str
    size_bytes: int
    variant: str
    precision: Precision
    config: Mapping[str, Any]
    batch: int | None
    target: str
    weights: Mapping[str, Any]
    opset: int | None = None
    strategies: Mapping[str, Any] | None = None
    parents: tuple[Mapping[str, Any], ...] = ()
    verification: Mapping[str, Any] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    sequence: int = 0
    created: str = ""
    manifest_version: int = MANIFEST_VERSION

    @property
    def failed(self) -> bool:
        """Whether a check on the artifact fell short."""
        return bool(self._failed_checks())

    @property
    def failure(self) -> str:
        """The failed checks in words."""
        return "; ".join(str(check.get("reason")) for check in self._failed_checks())

    def _failed_checks(self) -> list[Mapping[str, Any]]:
        details = self.details
        checks = (
            self.verification,
            *(details.get(name) for name in ("attestation", "nodewise", "located", "budget")),
        )
        return [check for check in checks if check and check["status"] == Status.FAILED.value]

    def to_json(self) -> str:
        """The manifest as it is written."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["precision"] = self.precision.value
        return manifest_text(values)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file and its manifest; a foreign file has none."""

    path: Path
    manifest: Manifest | None

    @property
    def kind(self) -> str:
        """Kind by the manifest, else by the name: engine or onnx."""
        if self.manifest is not None:
            return self.manifest.kind
        return "engine" if self.path.suffix in _ENGINE_SUFFIXES else "onnx"

    def known(self) -> Manifest:
        """The manifest. Raises ArtifactError for a foreign file."""
        if self.manifest is None:
            raise ArtifactError(
                f"{self.path} has no manifest, so its weights and variant are unknown; it can be "
                "inspected, benched and built as it is, not verified or retyped: use a file that "
                "t2t-deploy exported"
            )
        return self.manifest


@dataclass(frozen=True, slots=True)
class WorkspaceCheck:
    """How many artifacts were compared with their manifests, and what is wrong, a line each."""

    artifacts: int
    problems: tuple[str, ...]


class Workspace:
    """A folder of artifacts. Nothing is created before something is stored."""

    def __init__(self, root: Path) -> None:
        self.root = root

    # -- reading -------------------------------------------------------------------------------

    def artifacts(self, kind: str | None = None) -> list[Artifact]:
        """All artifacts, oldest first. Raises ArtifactError for an unreadable manifest."""
        found = []
        for path in self._manifests(kind):
            manifest = read_manifest(path)
            found.append(Artifact(path.with_name(manifest.file), manifest))
        return sorted(found, key=lambda artifact: artifact.known().sequence)

    def check(self) -> WorkspaceCheck:
        """Compare every file, and the weights it was made from, with its manifest."""
        problems = []
        count = 0
        for path in self._manifests():
            try:
                manifest = read_manifest(path)
                count += 1
                self.checked(Artifact(path.with_name(manifest.file), manifest), force=True)
                if manifest.weights:
                    self.weights(manifest)
            except ArtifactError as err:
                problems.append(str(err))
        return WorkspaceCheck(count, tuple(dict.fromkeys(problems)))

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
        suitable = [a for a in self.artifacts(kind) if suits(a.known())]
        usable = [a for a in suitable if force or not a.known().failed]
        if usable:
            return usable[-1]
        if suitable:
            last = suitable[-1]
            raise ArtifactError(
                f"every suitable {kind} artifact of workspace {self.root} failed its check, the "
                f"newest being {last.path.name} ({last.known().failure}); mend the cause and make "
                "it again, or pass --force"
            )
        make = "export" if kind == "onnx" else "build-trt"
        raise ArtifactError(
            f"workspace {self.root} has no suitable {kind} artifact; make one first: "
            f"t2t-deploy {make}"
        )

    def open(self, path: Path, *, force: bool = False) -> Artifact:
        """An artifact by its file, its content checked against its manifest.

        Raises ArtifactError where it is missing, altered, or failed a check and ``force`` is off.
        """
        if not path.is_file() and (inside := self._find(path.name)) is not None:
            path = inside
        if not path.is_file():
            raise ArtifactError(
                f"there is no artifact {path}; 't2t-deploy workspace list' shows what there is"
            )
        manifest_path = manifest_path_for(path)
        if not manifest_path.exists():
            return Artifact(path, None)
        artifact = Artifact(path, read_manifest(manifest_path))
        return self.checked(artifact, force=force)

    def checked(self, artifact: Artifact, *, force: bool = False) -> Artifact:
        """The artifact, once its content matches its manifest. Raises as `open`."""
        manifest = artifact.known()
        if not artifact.path.is_file():
            raise ArtifactError(f"{artifact.path} is gone, its manifest is not; make it again")
        found = file_sha256(artifact.path)
        if found != manifest.sha256:
            raise ArtifactError(
                f"{artifact.path} was altered: its SHA-256 is {found[:12]}, its manifest says "
                f"{manifest.sha256[:12]}; make it again"
            )
        if manifest.failed and not force:
            raise ArtifactError(
                f"{artifact.path} failed its check ({manifest.failure}); mend the cause and make "
                "it again, or pass --force"
            )
        return artifact

    def weights(self, manifest: Manifest) -> Path:
        """The stored weights an artifact was made from, checked. Raises ArtifactError."""
        return self.weights_path(str(manifest.weights["sha256"]), manifest.file)

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

    def _manifests(self, kind: str | None = None) -> list[Path]:
        folders = _FOLDERS.values() if kind is None else (_FOLDERS[kind],)
        found = ((self.root / folder).glob(f"*{MANIFEST_SUFFIX}") for folder in folders)
        return sorted(itertools.chain.from_iterable(found))

    def _find(self, name: str) -> Path | None:
        candidates = (self.root / folder / name for folder in _FOLDERS.values())
        return next((path for path in candidates if path.is_file()), None)

    # -- writing -------------------------------------------------------------------------------

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
        output: Path | None = None,
    ) -> Artifact:
        """Write a file and its manifest; the content's facts in the manifest are filled in.

        write: makes the file at the path it is given and returns the manifest fields it learned.
        output: where to write instead of the workspace, over what is there.
        """
        suffix = ".onnx" if manifest.kind == "onnx" else ".engine"
        folder = self.folder(_FOLDERS[manifest.kind]) if output is None else output.parent
        make_folder(folder)
        with temporary_file(folder, suffix) as temporary:
            learned = write(temporary)
            sha256 = file_sha256(temporary)
            path = folder / f"{stem}-{sha256[:8]}{suffix}" if output is None else output
            complete = dataclasses.replace(
                manifest,
                file=path.name,
                sha256=sha256,
                size_bytes=temporary.stat().st_size,
                tools=tool_versions(),
                sequence=self._next_sequence(),
                created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                **learned,
            )
            with temporary_file(folder, ".json") as draft:
                draft.write_text(complete.to_json(), encoding="utf-8")
                # Two renames, the file first: between them a manifest of the old content refuses
                # the new file, so nothing unchecked is ever used.
                publish(temporary, path)
                publish(draft, manifest_path_for(path))
        return Artifact(path, complete)

    def update(self, artifact: Artifact, **changes: Any) -> Artifact:
        """Replace fields of a manifest, the file unchanged."""
        manifest = dataclasses.replace(artifact.known(), **changes)
        write_text(manifest_path_for(artifact.path), manifest.to_json())
        return Artifact(artifact.path, manifest)

    def write_log(self, name: str, text: str) -> Path:
        """Keep a log; returns its path."""
        path = self.folder("logs") / name
        write_text(path, text)
        return path

    def prune(self) -> list[Path]:
        """Remove what killed commands left behind; returns it.

        Weights are never removed: an artifact written elsewhere with ``-o`` may need them.
        """
        removed = sorted(self.root.rglob(f"{_TEMPORARY}*"))
        for path in removed:
            path.unlink(missing_ok=True)
        return removed

    def folder(self, name: str) -> Path:
        """A folder of the workspace, made if need be. Raises ArtifactError."""
        folder = self.root / name
        make_folder(folder)
        return folder

    def _next_sequence(self) -> int:
        """One more than any readable manifest has; a damaged one elsewhere stops nobody."""
        sequences = [0]
        for folder in _FOLDERS.values():
            for path in (self.root / folder).glob(f"*{MANIFEST_SUFFIX}"):
                with contextlib.suppress(ArtifactError):
                    sequences.append(read_manifest(path).sequence)
        return max(sequences) + 1


def manifest_path_for(path: Path) -> Path:
    """Where the manifest of a file lies."""
    return path.with_name(path.name + MANIFEST_SUFFIX)


def read_manifest(path: Path) -> Manifest:
    """Read a manifest. Raises ArtifactError where it is damaged or of a newer format."""
    try:
        values = json_from_file(path, MAX_MANIFEST_BYTES)
        version = values.get("manifest_version")
        if isinstance(version, int) and version > MANIFEST_VERSION:
            raise ArtifactError(
                f"{path} has manifest format {version}, this t2t-deploy reads up to "
                f"{MANIFEST_VERSION}; update t2t-deploy"
            )
        stated = values.pop(_CHECKSUM)
        if stated != _checksum(values):
            raise ArtifactError(
                f"{path} was altered: its checksum is {_checksum(values)[:12]}, it states "
                f"{str(stated)[:12]}; remove it and make the artifact again"
            )
        check_manifest_values(values)
        values["precision"] = Precision(values["precision"])
        values["parents"] = tuple(values["parents"])
        manifest = Manifest(**values)
    except OSError as err:
        raise ArtifactError(f"cannot read {path}: {err.strerror}") from err
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as err:
        raise ArtifactError(
            f"{path} is no valid manifest ({first_line(err)}); remove it and make the artifact "
            "again"
        ) from err
    if not manifest.file or Path(manifest.file).name != manifest.file:
        raise ArtifactError(f"{path} names {manifest.file!r}; expected a file beside it")
    return manifest


def manifest_text(values: Mapping[str, Any]) -> str:
    """A manifest's values as indented JSON, keys in a fixed order, with a checksum of them."""
    stated = {key: value for key, value in values.items() if key != _CHECKSUM}
    sealed = stated | {_CHECKSUM: _checksum(stated)}
    return json.dumps(sealed, indent=1, sort_keys=True) + "\n"


def _checksum(values: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's values: it shows damage, not a forger."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def tool_versions() -> dict[str, str]:
    """Installed versions of the tools that shape an artifact."""
    versions = {"t2t-deploy": __version__}
    for name in _TOOLS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def make_folder(folder: Path) -> None:
    """Create a folder and its parents. Raises ArtifactError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise ArtifactError(
            f"cannot create {folder}: {err.strerror}; choose another place with --workspace or -o"
        ) from err


@contextlib.contextmanager
def temporary_file(folder: Path, suffix: str) -> Iterator[Path]:
    """A new file's path in a folder, removed on leaving unless published.

    Raises ArtifactError where the folder takes no file, or is full.
    """
    path: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=_TEMPORARY, suffix=suffix, dir=folder)
        os.close(handle)
        path = Path(name)
        yield path
    except OSError as err:
        raise ArtifactError(
            f"cannot write in {folder}: {err.strerror or err}; free some space or choose another "
            "place with --workspace or -o"
        ) from err
    finally:
        if path is not None:
            path.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Put a finished temporary file in its place in one step, its content on disk first."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    mask = os.umask(0)
    os.umask(mask)
    temporary.chmod(0o666 & ~mask)
    temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all. Raises ArtifactError."""
    make_folder(path.parent)
    with temporary_file(path.parent, path.suffix) as temporary:
        temporary.write_text(text, encoding="utf-8")
        publish(temporary, path)
