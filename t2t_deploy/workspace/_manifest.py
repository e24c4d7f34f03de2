"""What an artifact is, as it is written beside it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from t2t_deploy import __version__
from t2t_deploy._codec import Rule, from_plain, to_plain
from t2t_deploy._optional import WHEELS, installed_versions
from t2t_deploy._options import AnyPath, path_of
from t2t_deploy._preparation import USUAL, Preparation
from t2t_deploy._untrusted import DAMAGED, MAX_MANIFEST_BYTES, first_line, json_from_file
from t2t_deploy.errors import ArtifactError, UsageError, shown_size
from t2t_deploy.types import GraphIO, Precision, ShapeProfile, Status, Target, TensorSpec

MANIFEST_VERSION = 2
"""Written where pictures, sizes or names of classes are the model's own; 1 everywhere else."""
MANIFEST_SUFFIX = ".manifest.json"
_CHECKSUM = "checksum"
_HANDED_ON = ("image_input", "tail", "preparation", "preparation_source", "class_names")
_SUPERSEDED = "superseded"
_TOOLS = (
    *("torch", "onnx", "onnxsim", *WHEELS["onnxruntime"], "openvino", "tensorrt"),
    *(WHEELS["tensorrt_rtx"][0], "numpy"),
)
_SHA256 = re.compile(r"[0-9a-f]{64}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _are_weights(value: Mapping[str, Any]) -> bool:
    known = _SHA256.fullmatch(str(value.get("sha256"))) is not None
    return not value or (known and isinstance(value.get("source", {}), Mapping))


def _sides(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) and len(value) == 2 else (value,)


_COUNTED = ("image_size", "num_classes", "in_chans")
_Count: TypeAlias = Annotated[int, Rule(_is_count, "a whole number of at least 0")]
_Verdict: TypeAlias = Annotated[
    Mapping[str, Any], Rule(lambda value: isinstance(value.get("status"), str), "one with a status")
]
_Config: TypeAlias = Annotated[
    Mapping[str, Any],
    Rule(
        lambda value: all(_is_count(one) for n in _COUNTED for one in _sides(value.get(n, 1))),
        "sizes of at least 0",
    ),
]


@dataclass(frozen=True, slots=True)
class EqualisedLayer:
    """A layer whose channels an 8-bit graph holds in other units. factor: as of `EqualisedPair`."""

    producer: str
    factor: float | None = None


@dataclass(frozen=True, slots=True)
class Quantization:
    """How an 8-bit graph was quantised; None is what its version did not write, or another graph.

    mode: static or dynamic. base: precision of what stayed float. placement: by its name.
    """

    mode: str | None = None
    base: str | None = None
    placement: str | None = None
    equalised: tuple[EqualisedLayer, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What runs an engine, and on what: sm has the names of GPU architectures.

    profiles: as `ShapeProfile` writes them. inputs, outputs: None in engines of earlier versions.
    """

    backend: str
    backend_version: str
    sm: tuple[str, ...]
    profiles: tuple[str, ...] | None = None
    inputs: tuple[TensorSpec, ...] | None = None
    outputs: tuple[TensorSpec, ...] | None = None

    @property
    def shape_profiles(self) -> tuple[ShapeProfile, ...]:
        """The batches that the engine takes; none where its batch is fixed."""
        return tuple(map(ShapeProfile.parse, self.profiles or ()))


@dataclass(frozen=True, slots=True)
class Asked:
    """What an export was asked for beyond its target; None and False are what every graph has."""

    soft_split: str | None = None
    performer: str | None = None
    embed_preprocess: bool = False
    tail: str | None = None


@dataclass(frozen=True, slots=True)
class _Details:
    """Those of a manifest's details that are read again."""

    asked: Asked = Asked()
    quantization: Quantization = Quantization()
    calibration: Mapping[str, Any] | None = None
    engine: EngineInfo | None = None
    attestation: _Verdict | None = None
    nodewise: _Verdict | None = None
    located: _Verdict | None = None
    budget: _Verdict | None = None
    graph_verification: _Verdict | None = None
    class_names: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an artifact is and where it came from.

    kind: onnx or engine. file: its name beside the manifest. batch: fixed size, None for dynamic.
    weights: {"sha256", "source"} of the safetensors in the workspace. parents: {"kind", "file",
    "sha256"} of what it was made from. sequence: order of making within a workspace, independent
    of the clock. details: figures of this kind of artifact; properties give those read again.
    """

    kind: Annotated[str, Rule(lambda kind: kind in ("onnx", "engine"), "onnx or engine")]
    file: str
    sha256: str
    size_bytes: _Count
    variant: str
    precision: Precision
    config: _Config
    batch: Annotated[int, Rule(lambda batch: batch > 0, "a whole number of at least 1")] | None
    target: str
    weights: Annotated[Mapping[str, Any], Rule(_are_weights, "a SHA-256 and a source")]
    opset: _Count | None = None
    strategies: Mapping[str, Any] | None = None
    parents: tuple[Mapping[str, Any], ...] = ()
    verification: _Verdict | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    tools: Mapping[str, Any] = field(default_factory=dict)
    sequence: _Count = 0
    created: str = ""
    manifest_version: _Count = 1

    @property
    def _details(self) -> _Details:
        return from_plain(_Details, self.details)

    @property
    def asked(self) -> Asked:
        """What the export was asked for."""
        return self._details.asked

    @property
    def quantization(self) -> Quantization:
        """How it was quantised; all None if it was not."""
        return self._details.quantization

    @property
    def base(self) -> Precision | None:
        """What the float32 tensors of an 8-bit graph are computed in; None is as they are typed."""
        lowered = self.quantization.base == Precision.BF16.value
        return Precision.BF16 if lowered else None

    @property
    def calibrated_on(self) -> tuple[str, ...]:
        """SHA-256 of the pictures that its ranges are of."""
        return tuple((self._details.calibration or {}).get("pictures", ()))

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """A name for each class, in their order; None where it has none. Raises ValueError."""
        names = self._details.class_names
        if names is not None and len(names) != self.config.get("num_classes", len(names)):
            raise ValueError("details.class_names has not a name for each class")
        return names

    @property
    def engine(self) -> EngineInfo:
        """Of an engine. Raises ValueError for other kinds."""
        engine = self._details.engine
        if engine is None:
            raise ValueError("details.engine is missing")
        return engine

    @property
    def preparation(self) -> Preparation:
        """How pictures become its input; of a manifest that says nothing, the released models'.

        Raises ArtifactError for steps not known here.
        """
        size = self.config.get("image_size", 224)  # a foreign file's manifest has no config
        height_width = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
        values, channels = self.details.get("preparation"), self.config.get("in_chans", 3)
        try:
            if values is None:
                return USUAL.fitted(channels, height_width)
            return Preparation(**values, channels=channels, size=height_width)
        except (TypeError, ValueError, UsageError) as err:
            raise ArtifactError(
                f"the manifest's preparation of pictures is not known here ({err}); update "
                "t2t-deploy, or export the model again"
            ) from err

    @property
    def needs_version_2(self) -> bool:
        """Whether an earlier version, which knows one preparation and squares, must refuse it."""
        added = {"in_chans", "head_norm"} & self.config.keys()
        square = not isinstance(self.config.get("image_size"), (list, tuple))
        named = self.class_names is not None  # they say which class a folder is
        return bool(added) or not square or named or not self.preparation.usual

    @property
    def handed_on(self) -> dict[str, Any]:
        """Details that hold for what is made from it too."""
        return {key: self.details[key] for key in _HANDED_ON if key in self.details}

    @property
    def graph_io(self) -> GraphIO:
        """What stands around the model. Raises ArtifactError for a form not known here."""
        return GraphIO.of_details(self.details)

    @property
    def weights_sha256(self) -> str | None:
        """Which weights it was made of; None where they are unknown, as of a foreign graph."""
        return self.weights.get("sha256")

    @property
    def random_weights(self) -> bool:
        """Whether its weights are seeded random numbers."""
        return bool(self.weights.get("source", {}).get("kind") == "random")

    @property
    def failed(self) -> bool:
        """Whether a check on the artifact fell short."""
        return bool(self._failed_checks())

    @property
    def failure(self) -> str:
        """The failed checks in words."""
        return "; ".join(str(check.get("reason")) for check in self._failed_checks())

    @property
    def model_key(self) -> str:
        """What is computed: the same weights fit models of several dimensions, as 14, 14_resnext.

        Of an artifact whose weights are known.
        """
        shown = [self.details["preparation"]] if not self.preparation.usual else []
        return json.dumps([self.weights["sha256"], dict(self.config), *shown], sort_keys=True)

    @property
    def reference_name(self) -> str:
        """How the float32 model of the same weights is called."""
        return f"{self.variant} {self.size_text}px reference"

    @property
    def size_text(self) -> str:
        """Its image size for people and file names: 224, or 128x256 (height x width)."""
        return shown_size(self.config.get("image_size", "unknown"))

    def _failed_checks(self) -> list[Mapping[str, Any]]:
        of = self._details
        checks = (
            # an engine that has not run is as good as the graph it was built from
            self.verification or of.graph_verification,
            *(of.attestation, of.nodewise, of.located, of.budget),
        )
        failed = [check for check in checks if check and check["status"] == Status.FAILED.value]
        outdated = self.outdated
        return failed if outdated is None else [*failed, {"reason": outdated}]

    @property
    def outdated(self) -> str | None:
        """Why an 8-bit artifact of an earlier version is not to be used, and what to run.

        Their scales by channel stand in the operators; engines made of that pass bare sums of codes
        through float16, where those of real pictures overflow.
        """
        if self.precision not in (Precision.INT8, Precision.FP8):
            return None
        if self.kind == "engine":
            if "bare_sums" in (self._details.attestation or {}):
                return None
            return (
                f"built before it was checked whether sums of {self.precision.value} codes pass "
                "through float16, and in engines of that time they do: quantise and build again "
                f"(t2t-deploy build-trt --{self.precision.value} --images DIR)"
            )
        quantization = self.quantization
        if self.target != Target.TENSORRT.value or quantization.placement is not None:
            return None
        if quantization.base in (None, Precision.FP32.value):
            return None
        return (
            "quantised in a form whose sums of codes pass through float16 in engines, where they "
            f"overflow: quantise again (t2t-deploy quantize --type {self.precision.value} --target "
            "tensorrt --images DIR); ONNX Runtime computes this file rightly, with --force"
        )

    def to_json(self, superseded: Superseded | None = None) -> str:
        """The manifest as it is written. superseded: what the file is until it is replaced."""
        values = to_plain(self)
        if self.needs_version_2:
            values["manifest_version"] = MANIFEST_VERSION
        if superseded is not None:
            values[_SUPERSEDED] = to_plain(superseded)
        return manifest_text(values)


@dataclass(frozen=True, slots=True)
class Superseded:
    """A file until it is replaced: its SHA-256, and its manifest if it had one."""

    sha256: str
    manifest: Manifest | None


@dataclass(frozen=True, slots=True)
class Records:
    """What is written beside a file: its manifest, and what it may still be.

    The manifest of a file that replaces another is written before the file, with what that was.
    """

    manifest: Manifest
    superseded: Superseded | None = None

    def of(self, sha256: str) -> Superseded | None:
        """What is known of a content; None where the manifest is of another."""
        if sha256 == self.manifest.sha256:
            return Superseded(sha256, self.manifest)
        old = self.superseded
        return old if old is not None and sha256 == old.sha256 else None


def manifest_path_for(path: AnyPath) -> Path:
    """Where the manifest of a file lies."""
    path = path_of(path, "path")
    return path.with_name(path.name + MANIFEST_SUFFIX)


def read_manifest(path: AnyPath) -> Manifest:
    """Read a manifest. Raises ArtifactError where it is damaged or of a newer format."""
    return read_records(path_of(path, "path")).manifest


def read_records(path: Path) -> Records:
    """Read a manifest and what it supersedes. Raises as `read_manifest`."""
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
        json.dumps(values, allow_nan=False)  # an infinity would be no JSON where it is printed
        old = values.pop(_SUPERSEDED, None)
        superseded = None
        if old is not None:
            before = None if old["manifest"] is None else _from_values(old["manifest"])
            superseded = Superseded(str(old["sha256"]), before)
        records = Records(_from_values(values), superseded)
    except OSError as err:
        raise ArtifactError(f"cannot read {path}: {err.strerror}") from err
    except DAMAGED as err:
        raise ArtifactError(
            f"{path} is no valid manifest ({first_line(err)}); remove it and make the artifact "
            "again"
        ) from err
    name = records.manifest.file
    if not name or Path(name).name != name:
        raise ArtifactError(f"{path} names {name!r}; expected a file beside it")
    return records


def _from_values(values: Any) -> Manifest:
    manifest = from_plain(Manifest, values, exact=True)
    # what is read again of its details is looked at too
    _ = manifest.engine if manifest.kind == "engine" else manifest.asked
    _ = manifest.preparation, manifest.class_names
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
    return {"t2t-deploy": __version__} | installed_versions(*_TOOLS)
