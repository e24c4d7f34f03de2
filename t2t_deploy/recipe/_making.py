"""The steps of a recipe that make artifacts: what each depends on, how it is done, how reused."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from t2t_deploy._progress import Progress
from t2t_deploy.commands import (
    BuildRequest,
    CalibrateRequest,
    ExportRequest,
    QuantizeRequest,
    build_trt,
    build_values,
    calibrate_artifact,
    calibrate_values,
    export_model,
    export_values,
    quantize_artifact,
    quantize_values,
    read_model,
)
from t2t_deploy.errors import ArtifactError, CheckpointError
from t2t_deploy.recipe._context import Context
from t2t_deploy.recipe._parts import (
    CHECK_TOOLS,
    ENGINE_TOOLS,
    GRAPH_TOOLS,
    PICTURE_TOOLS,
    calibrated_on,
    content,
    judged_on,
    machine,
    options,
    place,
    tools,
    versions,
)
from t2t_deploy.recipe._recipe import Expected
from t2t_deploy.recipe._records import Parts, Record
from t2t_deploy.recipe._steps import NamedStep, Outcome, Values
from t2t_deploy.types import Precision, Target
from t2t_deploy.workspace import Artifact


@dataclass(frozen=True, slots=True)
class CheckModel:
    """Compares the model with what the recipe expects, before anything is made."""

    request: ExportRequest
    expected: Expected
    evaluated: bool

    label: ClassVar[str] = "model"
    needs: ClassVar[tuple[str, ...]] = ()
    lacks_tools: ClassVar[bool] = False

    def parts(self, context: Context) -> Parts:
        """The weights and what is expected of them."""
        asked = dataclasses.replace(self.expected, top1=None)  # [evaluate] looks at that
        return {
            **_model_parts(self.request),
            **options(asked),
            **tools("torch", "safetensors"),
        }

    def run(self, context: Context, progress: Progress) -> Outcome:
        """Read the weights. Raises CheckpointError where they are not as expected."""
        asked, request = self.expected, self.request
        found: dict[str, Any] = {}
        if request.checkpoint is not None:
            found["sha256"] = content("checkpoint", request.checkpoint)["checkpoint"]
            self._compare("sha256", asked.sha256, found["sha256"])
        elif asked.sha256 is not None:
            raise CheckpointError(
                "[expected] has a sha256 and [model] no checkpoint; name the file, or leave sha256 "
                "out"
            )
        as_stored = dataclasses.replace(request, image_size=None, num_classes=None)
        model = read_model(as_stored, progress)
        found |= {
            "classes": model.config.num_classes,
            "image_size": model.config.image_size,
            "params": sum(tensor.numel() for tensor in model.state_dict.values()),
        }
        self._compare("classes", asked.classes, found["classes"])
        self._compare("image-size", asked.image_size, found["image_size"])
        self._compare("params", asked.params, found["params"])
        return Outcome(found, note=self._note())

    def reuse(self, context: Context, record: Record) -> Outcome:
        """What was found before."""
        return Outcome(record.result, note=self._note())

    def _note(self) -> str | None:
        if self.expected.top1 is None or self.evaluated:
            return None
        return f"top1 {self.expected.top1:g} is not checked: the recipe has no [evaluate]"

    def _compare(self, name: str, wanted: Any, found: Any) -> None:
        if wanted is None or wanted == found:
            return
        file = self.request.checkpoint
        what = "the seeded random weights" if file is None else file.name
        raise CheckpointError(
            f"{name} of {what} is {found}; the recipe expects {wanted}: it is another file than "
            "the recipe is about, or mend [expected]"
        )


class _ArtifactStep(NamedStep, ABC):
    """What steps that make one artifact share; name: the artifact's."""

    __slots__ = ()

    @abstractmethod
    def values(self, artifact: Artifact) -> Values:
        """What the command prints with --json."""

    def fell_short(self, artifact: Artifact) -> str | None:
        """The check that failed."""
        known = artifact.require_manifest()
        return known.failure if known.failed else None

    def outcome(self, context: Context, artifact: Artifact) -> Outcome:
        """The outcome of an artifact that was just made or found again."""
        fell_short = self.fell_short(artifact)
        if fell_short is None:
            context.artifacts[self.name] = artifact
        made = context.made(artifact.path, artifact.require_manifest().sha256)
        return Outcome(self.values(artifact), (made,), fell_short)

    def reuse(self, context: Context, record: Record) -> Outcome:
        """The artifact, its file, its manifest and its weights as they were."""
        context.unchanged(record.made)
        artifact = context.workspace.open(context.place(record.made[0]))
        if artifact.require_manifest().sha256 != record.made[0].sha256:
            raise ArtifactError(f"{record.made[0].path} was replaced by another")
        if artifact.require_manifest().weights and artifact.kind == "onnx":
            context.workspace.weights(artifact.require_manifest())
        return self.outcome(context, artifact)


class Export(_ArtifactStep):
    """Checkpoint -> verified ONNX."""

    __slots__ = ()
    command = "export"

    def parts(self, context: Context) -> Parts:
        """The weights, the options, what traces and verifies."""
        request: ExportRequest = self.request
        return {
            **_model_parts(request),
            **options(dataclasses.replace(request, output=None)),
            **place("output", request.output, context.recipe.folder),
            **tools(*GRAPH_TOOLS, *CHECK_TOOLS),
        }

    def run(self, context: Context, progress: Progress) -> Outcome:
        """Export."""
        return self.outcome(context, export_model(context.workspace, self.request, progress))

    def values(self, artifact: Artifact) -> Values:
        """What export prints with --json."""
        return export_values(artifact)


class Calibrate(NamedStep):
    """Pictures -> ranges, for one or more quantised graphs."""

    __slots__ = ()
    command = "calibrate"

    def parts(self, context: Context) -> Parts:
        """The export, the pictures, the options, what traces and runs the graph."""
        request: CalibrateRequest = self.request
        return {
            **self.source_part(context),
            **calibrated_on(request.images, request.count),
            **options(request),
            **tools(*GRAPH_TOOLS, *CHECK_TOOLS, *PICTURE_TOOLS),
        }

    def run(self, context: Context, progress: Progress) -> Outcome:
        """Take the ranges."""
        request: CalibrateRequest = dataclasses.replace(
            self.request, artifact=self.given(context).path
        )
        last = context.last
        if last is not None and versions(last.parts) != versions(self.parts(context)):
            # the pipeline would take the file that other versions made
            context.place(last.made[0]).unlink(missing_ok=True)
        found = calibrate_artifact(context.workspace, request, progress)
        context.ranges[self.label] = found.path
        return Outcome(calibrate_values(found), (context.made(found.path),))

    def reuse(self, context: Context, record: Record) -> Outcome:
        """The ranges file as it was; an altered one is removed, so that no command takes it."""
        path = context.place(record.made[0])
        try:
            context.unchanged(record.made)
        except ArtifactError:
            path.unlink(missing_ok=True)
            raise
        context.ranges[self.label] = path
        return Outcome(_moved(record.result, "ranges", path), record.made)


@dataclass(frozen=True, slots=True)
class _QuantizeFields(_ArtifactStep):
    ranges: str | None = None


class Quantize(_QuantizeFields):
    """Export -> INT8 or FP8 graph, verified, within its budget. ranges: the step they are of."""

    __slots__ = ()
    command = "quantize"

    @property
    def needs(self) -> tuple[str, ...]:
        """The export, and the ranges."""
        sources = (self.source_step, self.ranges)
        return tuple(step for step in sources if step is not None)

    def parts(self, context: Context) -> Parts:
        """The export, the ranges, the budget's pictures, the options, what traces and verifies."""
        request: QuantizeRequest = self.request
        seen = () if request.eval_images is None else PICTURE_TOOLS
        ranges = None if self.ranges is None else context.ranges[self.ranges]
        return {
            **self.source_part(context),
            **content("ranges", ranges),
            **judged_on(request.eval_images),
            **options(request),
            **place("output", request.output, context.recipe.folder),
            **tools(*GRAPH_TOOLS, *CHECK_TOOLS, *seen),
        }

    def run(self, context: Context, progress: Progress) -> Outcome:
        """Quantise."""
        ranges = None if self.ranges is None else context.ranges[self.ranges]
        request = dataclasses.replace(
            self.request, artifact=self.given(context).path, ranges=ranges
        )
        return self.outcome(context, quantize_artifact(context.workspace, request, progress))

    def values(self, artifact: Artifact) -> Values:
        """What quantize prints with --json."""
        return quantize_values(artifact)


class Build(_ArtifactStep):
    """Graph -> engine."""

    __slots__ = ()
    command = "build-trt"
    lacks_tools = True

    def parts(self, context: Context) -> Parts:
        """The graph, the options, the builder, the device; what traces where it is retyped."""
        request: BuildRequest = self.request
        source = self.given(context).require_manifest()
        as_it_is = source.target == Target.TENSORRT.value or source.precision is Precision.INT8
        again = not as_it_is or source.precision is not request.precision
        traced = (*GRAPH_TOOLS, *CHECK_TOOLS) if again else ("onnx",)
        return {
            **self.source_part(context),
            **options(request),
            **place("output", request.output, context.recipe.folder),
            **tools(*ENGINE_TOOLS, *traced),
            **machine(processor=False),
        }

    def run(self, context: Context, progress: Progress) -> Outcome:
        """Build."""
        request = dataclasses.replace(self.request, artifact=self.given(context).path)
        return self.outcome(context, build_trt(context.workspace, request, progress))

    def values(self, artifact: Artifact) -> Values:
        """What build-trt prints with --json."""
        return build_values(artifact)


def _model_parts(request: ExportRequest) -> dict[str, str]:
    named = {} if request.config_file is None else {"model's name": request.config_file.stem}
    return {
        **content("checkpoint", request.checkpoint),
        **content("config", request.config_file),
        **named,
    }


def _moved(result: Values, name: str, path: Path) -> Values:
    """A kept result with the path of a file that may have been moved since."""
    return {**result, name: {**result[name], "path": str(path), "reused": True}}
