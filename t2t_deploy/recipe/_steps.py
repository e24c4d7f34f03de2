"""The steps of a recipe: what each depends on, how it is done, how its outputs are used again."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from t2t_deploy._options import Among
from t2t_deploy._progress import Progress
from t2t_deploy.commands import (
    READ_AS,
    CalibratedRanges,
    DocumentedBench,
    Evaluation,
    GraphForm,
    LoadedModel,
    Package,
    VerifiedArtifact,
    WebPackage,
    benchmark,
    build_values,
    calibrate_values,
    calibration_advice,
    evaluate_values,
    export_values,
    load_model,
    package_values,
    quantize_values,
    verify_values,
    why_not_judged,
)
from t2t_deploy.errors import ArtifactError, CheckFailed, CheckpointError, MisfitError, counted
from t2t_deploy.recipe._fingerprint import (
    CHECK_TOOLS,
    ENGINE_TOOLS,
    GRAPH_TOOLS,
    RUNTIME_TOOLS,
    artifact_fingerprint,
    command_fingerprint,
    content,
    machine,
    text_sha256,
    tools,
    versions,
)
from t2t_deploy.recipe._load import Expected, Job, Recipe
from t2t_deploy.recipe._records import Fingerprint, OutputFile, Record, tree_sha256
from t2t_deploy.recipe._tables import COMMANDS
from t2t_deploy.runtime import BACKENDS, DEFAULT_BACKEND
from t2t_deploy.serving.web import read_runtime
from t2t_deploy.types import Precision, Target
from t2t_deploy.workspace import Artifact, Workspace

PERCENT = 100.0


@dataclass(slots=True)
class Context:
    """One run under way.

    artifacts: what there is, by its name in the recipe. missing: why another is not there.
    ranges: their files, by the source's name and the target. bench: what was measured. last: the
    record of the step at hand as it was done last.
    """

    workspace: Workspace
    recipe: Recipe
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    ranges: dict[tuple[str | None, Any], Path] = field(default_factory=dict)
    bench: Mapping[str, Any] = field(default_factory=dict)
    last: Record | None = None

    def output(self, path: Path, sha256: str | None = None) -> OutputFile:
        """A file or folder as a record has it."""
        found = tree_sha256(path) if sha256 is None else sha256
        bases = {"workspace": self.workspace.root, "recipe": self.recipe.folder}
        for base, root in bases.items():
            if path.absolute().is_relative_to(root.absolute()):
                inside = path.absolute().relative_to(root.absolute())
                return OutputFile(base, inside.as_posix(), found)
        return OutputFile("recipe", str(path.absolute()), found)

    def path(self, output: OutputFile) -> Path:
        """Where a record's file is now."""
        root = self.workspace.root if output.base == "workspace" else self.recipe.folder
        return root / output.path

    def check_unchanged(self, outputs: Sequence[OutputFile]) -> None:
        """Raise ArtifactError unless all files are there as they were written."""
        for one in outputs:
            try:
                found = tree_sha256(self.path(one))
            except OSError:
                raise ArtifactError(f"{one.path} is gone") from None
            if found != one.sha256:
                raise ArtifactError(f"{one.path} was altered")

    def usable(self, names: Sequence[str]) -> dict[str, Artifact]:
        """Those of the artifacts that are there and passed their checks, by name.

        What is left out is noted in ``missing``. A verification may have failed since.
        """
        found = {}
        for name in names:
            if name not in self.artifacts:
                continue
            try:
                found[name] = self.workspace.open(self.artifacts[name].path)
            except ArtifactError as err:
                self.missing[name] = str(err)
        return found

    def left_out(self, names: Sequence[str]) -> str | None:
        """The artifacts that are not there, and why, in a line; None where all are."""
        absent = [f"{name} ({self.missing[name]})" for name in names if name in self.missing]
        return f"left out {', '.join(absent)}" if absent else None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A step that was done.

    result: what its command prints with --json. failed_check: why the step counts as failed
    although it was done. exit_status: of that; 3 for a check that fell short.
    """

    result: Mapping[str, Any]
    outputs: tuple[OutputFile, ...] = ()
    failed_check: str | None = None
    exit_status: int = CheckFailed.exit_status


@dataclass(frozen=True, slots=True)
class Step(ABC):
    """A step of a recipe, about one of its jobs.

    needs: labels of the steps without which there is nothing to do. lacks_tools: whether a runtime
    or builder that cannot run here leaves it not run.
    """

    job: Job
    needs: tuple[str, ...] = ()

    lacks_tools: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """The command and the name, as people read it."""
        return f"{self.job.command} {self.job.name}".rstrip()

    @abstractmethod
    def arguments(self, context: Context) -> dict[str, Any]:
        """The command's arguments, with what steps before made."""

    @abstractmethod
    def fingerprint(self, context: Context) -> Fingerprint:
        """All that the outcome depends on. Raises DeployError for what cannot be read."""

    @abstractmethod
    def outcome(self, context: Context, found: Any) -> Outcome:
        """What the command's result means for the recipe."""

    def run(self, context: Context, progress: Progress) -> Outcome:
        """Do it. Raises DeployError."""
        given = self.arguments(context) | {"workspace": context.workspace, "progress": progress}
        return self.outcome(context, COMMANDS[self.job.command](**given))

    def reuse(self, context: Context, record: Record) -> Outcome:
        """Take what was made before. Raises ArtifactError where it is not there as it was."""
        context.check_unchanged(record.outputs)
        return Outcome(record.result, record.outputs)

    def note(self, context: Context) -> str | None:
        """What else should be known of the outcome."""
        return None

    def expectation(self) -> str | None:
        """What would be left uncompared if the step were not run; None for nothing."""
        return None


class NoArtifactError(MisfitError):
    """Everything that a step looks at failed, or is gone."""


@dataclass(frozen=True, slots=True)
class CheckModel(Step):
    """Compares the model with what the recipe expects, before anything is made."""

    expected: Expected = field(default_factory=Expected)

    label: ClassVar[str] = "model"

    def arguments(self, context: Context) -> dict[str, Any]:
        """Those of `load_model`: the model as it is stored."""
        names = ("variant", "config", "checkpoint", *READ_AS)
        return {name: self.job.given.get(name) for name in names}

    def fingerprint(self, context: Context) -> Fingerprint:
        """The weights and what is expected of them."""
        asked = dataclasses.replace(self.expected, top1=None)  # [evaluate] looks at that
        expected = {f"option {k}": json.dumps(v) for k, v in dataclasses.asdict(asked).items()}
        return {**_weights(self.job), **expected, **tools("torch", "safetensors")}

    def run(self, context: Context, progress: Progress) -> Outcome:
        """Read the weights. Raises CheckpointError where they are not as expected."""
        given = self.arguments(context)
        sha256 = content("checkpoint", given["checkpoint"]).get("checkpoint")
        self._compare("sha256", sha256)
        done = self.outcome(context, load_model(GraphForm(), given, progress))
        return done if sha256 is None else Outcome({"sha256": sha256, **done.result})

    def outcome(self, context: Context, found: LoadedModel) -> Outcome:
        """The figures of the model, compared."""
        figures = {
            "classes": found.config.num_classes,
            "image_size": found.config.image_size,
            "params": sum(tensor.numel() for tensor in found.state_dict.values()),
        }
        for name, actual in figures.items():
            self._compare(name, actual)
        return Outcome(figures)

    def _compare(self, name: str, actual: Any) -> None:
        expected = getattr(self.expected, name)
        if expected is None or expected == actual:
            return
        file = self.job.given.get("checkpoint")
        what = "the seeded random weights" if file is None else file.name
        raise CheckpointError(
            f"{name.replace('_', '-')} of {what} is {actual}; the recipe expects {expected}: use "
            "the file that the recipe is about, or correct [expected]"
        )


class SourceStep(Step):
    """What steps about one artifact, or one file of ranges, share."""

    __slots__ = ()

    def source(self, context: Context) -> Artifact:
        """What it starts from."""
        assert self.job.source is not None
        return context.artifacts[self.job.source]

    def arguments(self, context: Context) -> dict[str, Any]:
        given = dict(self.job.given)
        if self.job.source is not None:
            given["artifact"] = self.source(context).path
        ranges = context.ranges.get((self.job.source, given.get("target")))
        if self.job.command == "quantize" and ranges is not None:
            given["ranges"] = ranges
        return given

    def fingerprint(self, context: Context) -> Fingerprint:
        """What it starts from, the arguments, the tools; of an export the weights."""
        found = command_fingerprint(
            COMMANDS[self.job.command], self.arguments(context), context.recipe.folder
        )
        if self.job.source is not None:
            found |= artifact_fingerprint(self.job.source, self.source(context))
        weights = _weights(self.job) if self.job.command == "export" else {}
        return found | self.tools(context) | weights

    def tools(self, context: Context) -> dict[str, str]:
        """What traces and verifies."""
        return tools(*GRAPH_TOOLS, *CHECK_TOOLS)


class MakeArtifact(SourceStep):
    """A step that makes one artifact: an export, a quantised graph."""

    __slots__ = ()
    values: ClassVar[Mapping[str, Callable[[Artifact], dict[str, Any]]]] = {
        "export": export_values,
        "quantize": quantize_values,
        "build-trt": build_values,
    }

    def reuse(self, context: Context, record: Record) -> Outcome:
        """The artifact, its file, its manifest and its weights as they were."""
        context.check_unchanged(record.outputs)
        artifact = context.workspace.open(context.path(record.outputs[0]))
        manifest = artifact.require_manifest()
        if manifest.sha256 != record.outputs[0].sha256:
            raise ArtifactError(f"{record.outputs[0].path} was replaced by another")
        if manifest.weights and artifact.kind == "onnx":
            context.workspace.weights(manifest)
        return self.outcome(context, artifact)

    def outcome(self, context: Context, found: Artifact) -> Outcome:
        manifest = found.require_manifest()
        failed_check = None
        if manifest.failed:
            advice = calibration_advice(manifest)
            failed_check = "; ".join(one for one in (manifest.failure, advice) if one)
        else:
            context.artifacts[self.job.name] = found
        output = context.output(found.path, manifest.sha256)
        return Outcome(self.values[self.job.command](found), (output,), failed_check)


class Build(MakeArtifact):
    """Graph -> engine."""

    __slots__ = ()
    lacks_tools: ClassVar[bool] = True

    def tools(self, context: Context) -> dict[str, str]:
        """The builder, the device; what traces where the graph is exported again."""
        source = self.source(context).require_manifest()
        as_it_is = source.target == Target.TENSORRT.value or source.precision is Precision.INT8
        again = not as_it_is or source.precision is not self.job.given["precision"]
        traced = (*GRAPH_TOOLS, *CHECK_TOOLS) if again else ("onnx",)
        return tools(*ENGINE_TOOLS, *traced) | machine(processor=False)


class Calibrate(SourceStep):
    """Pictures -> ranges, for one or more quantised graphs."""

    __slots__ = ()

    def run(self, context: Context, progress: Progress) -> Outcome:
        last = context.last
        if last is not None and versions(last.parts) != versions(self.fingerprint(context)):
            # the command would take the file that other versions made
            context.path(last.outputs[0]).unlink(missing_ok=True)
        return Step.run(self, context, progress)

    def outcome(self, context: Context, found: CalibratedRanges) -> Outcome:
        context.ranges[self.job.source, self.job.given["target"]] = found.path
        return Outcome(calibrate_values(found), (context.output(found.path),))

    def reuse(self, context: Context, record: Record) -> Outcome:
        """The ranges file as it was; an altered one is removed, so that no command takes it."""
        path = context.path(record.outputs[0])
        try:
            context.check_unchanged(record.outputs)
        except ArtifactError:
            path.unlink(missing_ok=True)
            raise
        context.ranges[self.job.source, self.job.given["target"]] = path
        # the file may have been moved since
        ranges = {**record.result["ranges"], "path": str(path), "reused": True}
        return Outcome({**record.result, "ranges": ranges}, record.outputs)


class PackageStep(SourceStep):
    """A model repository, or a page, of one artifact."""

    __slots__ = ()

    def tools(self, context: Context) -> dict[str, str]:
        """What reads the graph's inputs and outputs, and what a page runs."""
        given = self.job.given
        if given.get("web") is None:
            return tools("onnx")
        return tools("onnx") | {"onnxruntime-web": read_runtime(given.get("ort_web")).sha256}

    def run(self, context: Context, progress: Progress) -> Outcome:
        context.workspace.open(self.source(context).path)
        return Step.run(self, context, progress)

    def outcome(self, context: Context, found: Package | WebPackage) -> Outcome:
        return Outcome(package_values(found), tuple(map(context.output, found.folders)))


@dataclass(frozen=True, slots=True)
class CheckStep(Step):
    """What steps that look at all artifacts share; names: the artifacts of the recipe."""

    names: tuple[str, ...] = ()
    expected: Expected | None = None

    lacks_tools: ClassVar[bool] = True
    files: ClassVar[bool] = True

    def note(self, context: Context) -> str | None:
        """Which artifacts are left out."""
        return context.left_out(self.names)

    def artifacts(self, context: Context) -> dict[str, Artifact]:
        """The artifacts there are. Raises NoArtifactError where there is none."""
        found = context.usable(self.names)
        if not found:
            left_out = context.left_out(self.names)
            raise NoArtifactError(f"there is no artifact to look at: {left_out}")
        return found

    def arguments(self, context: Context) -> dict[str, Any]:
        paths = Among(artifact.path for artifact in self.artifacts(context).values())
        return {"artifacts": paths, **self.job.given}

    def fingerprint(self, context: Context) -> Fingerprint:
        """The artifacts there are, the arguments, the tools."""
        found: dict[str, str] = {}
        for name, artifact in self.artifacts(context).items():
            found |= artifact_fingerprint(name, artifact)
        function, folder = COMMANDS[self.job.command], context.recipe.folder
        found |= command_fingerprint(function, self.job.given, folder, files=self.files)
        return found | self.tools()

    def tools(self) -> dict[str, str]:
        """What compares."""
        runtime = BACKENDS[self.job.given.get("backend") or DEFAULT_BACKEND]
        return tools(*CHECK_TOOLS, *runtime.tools) | machine(processor=False)


class Verify(CheckStep):
    """All artifacts against the reference once more: other pictures, or node by node."""

    __slots__ = ()

    def outcome(self, context: Context, found: list[VerifiedArtifact]) -> Outcome:
        failed = ", ".join(result.artifact.path.name for result in found if result.failed)
        values = verify_values(found)
        if failed:
            return Outcome(values, failed_check=f"failed verification: {failed}")
        return Outcome(values, failed_check=why_not_judged(found), exit_status=1)


class Evaluate(CheckStep):
    """Accuracy of all artifacts on a folder, and of the reference against what was published."""

    __slots__ = ()

    def fingerprint(self, context: Context) -> Fingerprint:
        """What is expected too."""
        found = {**CheckStep.fingerprint(self, context)}
        if self.expected is not None:
            found["expected top1"] = f"{self.expected.top1} ± {self.expected.within}"
        return found

    def outcome(self, context: Context, found: Evaluation) -> Outcome:
        unjudged = found.misfits and f"not evaluated: {found.misfits}"
        short = "; ".join(filter(None, (unjudged, found.failure, self._top1(found)))) or None
        outputs = () if found.plot is None else (context.output(found.plot),)
        status = CheckFailed.exit_status if unjudged is None else MisfitError.exit_status
        return Outcome(evaluate_values(found), outputs, short, status)

    def expectation(self) -> str | None:
        """The accuracy."""
        return None if self.expected is None else f"top1 {self.expected.top1:g}"

    def _top1(self, found: Evaluation) -> str | None:
        """Why the float32 model is not as accurate as it should be; None where it is."""
        expected = self.expected
        if expected is None or expected.top1 is None:
            return None
        if not found.images.has_labels:
            return f"top1 {expected.top1:g} is expected, and the pictures have no class folders"
        if not found.references:
            return f"top1 {expected.top1:g} is expected, and the reference was not run"
        for name, accuracy in found.references.items():
            if accuracy.decisions is not None:
                return (
                    f"top1 {expected.top1:g} is expected, and the {name} decides each class alone"
                )
            top1 = PERCENT * (accuracy.top1 or 0.0)
            if abs(top1 - expected.top1) > expected.within:
                return (
                    f"top1 of the {name} is {top1:.2f} % on {counted(accuracy.images, 'picture')}; "
                    f"expected {expected.top1:g} within {expected.within:g}"
                )
        return None


class Bench(CheckStep):
    """Latency, throughput and memory of all artifacts here; the page is a step of its own."""

    __slots__ = ()
    files: ClassVar[bool] = False

    def tools(self) -> dict[str, str]:
        """The runtimes and the machine."""
        return tools(*CHECK_TOOLS, *RUNTIME_TOOLS) | machine(processor=True)

    def arguments(self, context: Context) -> dict[str, Any]:
        """Without what the page is about."""
        found = CheckStep.arguments(self, context)
        return {k: v for k, v in found.items() if k not in ("report", "csv", "compare")}

    def outcome(self, context: Context, found: DocumentedBench) -> Outcome:
        context.bench = found.to_dict()
        return Outcome(context.bench, failed_check=found.failure, exit_status=1)

    def reuse(self, context: Context, record: Record) -> Outcome:
        """The figures as they were measured."""
        context.bench = record.result
        return Step.reuse(self, context, record)


class ReportPages(CheckStep):
    """The page and the table about the bench, without measuring again."""

    __slots__ = ()
    label: ClassVar[str] = "report"

    def fingerprint(self, context: Context) -> Fingerprint:
        """The figures, the manifests described beside them, the older bench, the files."""
        found: dict[str, str] = {}
        for name, artifact in self.artifacts(context).items():
            found |= artifact_fingerprint(name, artifact, verified=True)
        files = command_fingerprint(benchmark, self.job.given, context.recipe.folder)
        kept = {k: v for k, v in files.items() if k in _PAGE}
        measured = text_sha256(json.dumps(context.bench, sort_keys=True))
        return {**found, "measured figures": measured, **kept, **tools()}

    def arguments(self, context: Context) -> dict[str, Any]:
        """With the figures, which are not measured again."""
        return {**CheckStep.arguments(self, context), "measured": context.bench}

    def outcome(self, context: Context, found: DocumentedBench) -> Outcome:
        values = found.to_dict()
        result = {name: values[name] for name in ("command", "comparison", "written")}
        written = tuple(map(context.output, found.written))
        return Outcome(result, written, found.failure, MisfitError.exit_status)


_PAGE = ("older bench", "option report", "option csv")


def _weights(job: Job) -> dict[str, str]:
    """The contents that an export reads, and the name that a file of dimensions gives a model."""
    config = job.given.get("config")
    found = content("checkpoint", job.given.get("checkpoint")) | content("config", config)
    found |= {f"option {k}": json.dumps(job.given[k]) for k in READ_AS if job.given.get(k)}
    return found if config is None else {**found, "model's name": config.stem}
