"""What an artifact is, as it is written beside it.

    FILE.manifest.json      the manifest of FILE, with a checksum
      "superseded"          only while FILE is being replaced: what it was until then

The manifest of a file that replaces another is written before the file, and tells of both: at any
moment, one of them is the file that lies there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t2t_deploy import __version__
from t2t_deploy._optional import WHEELS, installed_versions
from t2t_deploy._untrusted import MAX_MANIFEST_BYTES, first_line, json_from_file
from t2t_deploy.errors import ArtifactError
from t2t_deploy.types import Precision, ShapeProfile, Status, Target
from t2t_deploy.workspace._manifest_check import check_manifest_values

MANIFEST_VERSION = 1
MANIFEST_SUFFIX = ".manifest.json"
_CHECKSUM = "checksum"
_SUPERSEDED = "superseded"
_TOOLS = (
    *("torch", "onnx", "onnxsim", *WHEELS["onnxruntime"], "openvino", "tensorrt"),
    *(WHEELS["tensorrt_rtx"][0], "numpy"),
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

    @property
    def model_key(self) -> str:
        """What is computed: the same weights fit models of several dimensions, as 14, 14_resnext.

        Of an artifact whose weights are known.
        """
        return json.dumps([self.weights["sha256"], dict(self.config)], sort_keys=True)

    @property
    def reference_name(self) -> str:
        """How the float32 model of the same weights is called."""
        return f"{self.variant} {self.config['image_size']}px reference"

    @property
    def engine_backend(self) -> str:
        """The runtime of an engine."""
        return str(self.details["engine"]["backend"])

    @property
    def engine_profiles(self) -> tuple[ShapeProfile, ...]:
        """The batches that an engine takes; none where its batch is fixed."""
        return tuple(map(ShapeProfile.parse, self.details["engine"].get("profiles") or ()))

    @property
    def dynamic_ranges(self) -> bool:
        """Whether 8-bit ranges are found at run time."""
        return bool(self.details.get("quantization", {}).get("mode") == "dynamic")

    def _failed_checks(self) -> list[Mapping[str, Any]]:
        details = self.details
        checks = (
            # an engine that has not run is as good as the graph it was built from
            self.verification or details.get("graph_verification"),
            *(details.get(name) for name in ("attestation", "nodewise", "located", "budget")),
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
            if "bare_sums" in (self.details.get("attestation") or {}):
                return None
            return (
                f"built before it was checked whether sums of {self.precision.value} codes pass "
                "through float16, and in engines of that time they do: quantise and build again "
                f"(t2t-deploy build-trt --{self.precision.value} --images DIR)"
            )
        quantization = self.details.get("quantization", {})
        if self.target != Target.TENSORRT.value or "base" not in quantization:
            return None
        if quantization["base"] == Precision.FP32.value or "placement" in quantization:
            return None
        return (
            "quantised in a form whose sums of codes pass through float16 in engines, where they "
            f"overflow: quantise again (t2t-deploy quantize --type {self.precision.value} --target "
            "tensorrt --images DIR); ONNX Runtime computes this file rightly, with --force"
        )

    def to_json(self, superseded: Superseded | None = None) -> str:
        """The manifest as it is written. superseded: what the file is until it is replaced."""
        values = self._values()
        if superseded is not None:
            old = superseded.manifest
            values[_SUPERSEDED] = {
                "sha256": superseded.sha256,
                "manifest": None if old is None else old._values(),
            }
        return manifest_text(values)

    def _values(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["precision"] = self.precision.value
        return values


@dataclass(frozen=True, slots=True)
class Superseded:
    """A file until it is replaced: its SHA-256, and its manifest if it had one."""

    sha256: str
    manifest: Manifest | None


@dataclass(frozen=True, slots=True)
class Records:
    """What is written beside a file: its manifest, and what it may still be."""

    manifest: Manifest
    superseded: Superseded | None = None

    def of(self, sha256: str) -> Superseded | None:
        """What is known of a content; None where the manifest is of another."""
        if sha256 == self.manifest.sha256:
            return Superseded(sha256, self.manifest)
        old = self.superseded
        return old if old is not None and sha256 == old.sha256 else None


def manifest_path_for(path: Path) -> Path:
    """Where the manifest of a file lies."""
    return path.with_name(path.name + MANIFEST_SUFFIX)


def read_manifest(path: Path) -> Manifest:
    """Read a manifest. Raises ArtifactError where it is damaged or of a newer format."""
    return read_records(path).manifest


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
        old = values.pop(_SUPERSEDED, None)
        records = Records(_from_values(values))
        if old is not None:
            before = None if old["manifest"] is None else _from_values(old["manifest"])
            records = Records(records.manifest, Superseded(str(old["sha256"]), before))
    except OSError as err:
        raise ArtifactError(f"cannot read {path}: {err.strerror}") from err
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as err:
        raise ArtifactError(
            f"{path} is no valid manifest ({first_line(err)}); remove it and make the artifact "
            "again"
        ) from err
    name = records.manifest.file
    if not name or Path(name).name != name:
        raise ArtifactError(f"{path} names {name!r}; expected a file beside it")
    return records


def _from_values(values: dict[str, Any]) -> Manifest:
    check_manifest_values(values)
    values["precision"] = Precision(values["precision"])
    values["parents"] = tuple(values["parents"])
    return Manifest(**values)


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
