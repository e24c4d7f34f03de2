"""What makes files: exports, ranges, quantised graphs, engines, model repositories, whole recipes.

The examples run in this order in one folder, which holds ``tiny.toml``, a model of 32 pixels and
two classes, pictures in ``train`` and ``val``, and ``recipe.toml``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from t2t_deploy._progress import Progress, silent
from t2t_deploy.api._arguments import (
    AnyPath,
    batch_of,
    path_of,
    word_of,
    words_of,
    workspace_of,
)
from t2t_deploy.calibration import RangeMethod
from t2t_deploy.commands import (
    DEFAULT_COUNT,
    DEFAULT_METHOD,
    BuildRequest,
    CalibratedRanges,
    CalibrateRequest,
    ExportRequest,
    Package,
    PackageRequest,
    QuantizationMode,
    QuantizeRequest,
    StrategyComparison,
    build_trt,
    calibrate_artifact,
    chosen_profiles,
    compare_strategies,
    export_model,
    quantize_artifact,
)
from t2t_deploy.commands import package_artifact as _package_artifact
from t2t_deploy.recipe import RecipeRun, load_recipe
from t2t_deploy.recipe import run_recipe as _run_recipe
from t2t_deploy.serving.triton import Accelerator, ServingFormat
from t2t_deploy.types import GraphIO, Precision, Tail, Target
from t2t_deploy.workspace import Artifact, Workspace


def export_onnx(
    *,
    variant: str | None = None,
    config: AnyPath | None = None,
    checkpoint: AnyPath | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    batch: int | str = "dynamic",
    precision: str | Precision = Precision.FP32,
    target: str | Target = Target.PORTABLE,
    soft_split: str | None = None,
    performer: str | None = None,
    embed_preprocess: bool = False,
    tail: str | Tail = Tail.LOGITS,
    opset: int | None = None,
    output: AnyPath | None = None,
    workspace: Workspace | AnyPath | None = None,
    progress: Progress = silent,
) -> Artifact:
    """Export a checkpoint to ONNX and verify the file against the reference.

    The arguments are the options of ``t2t-deploy export``; None is their default. The graph takes
    ``image``, (batch, 3, S, S) float32, normalised, and gives ``logits``, (batch, classes) float32,
    unless ``embed_preprocess`` or ``tail`` say otherwise. A failed verification is no exception: it
    is in the manifest, and later steps refuse the file.

    Raises UsageError for options that contradict each other, CheckpointError, ConfigError,
    ExportError, MissingDependencyError without torch.

    Examples
    --------
    >>> from t2t_deploy import export_onnx
    >>> made = export_onnx(config="tiny.toml")
    >>> made.path.parent.as_posix(), made.known().precision.value, made.known().failed
    ('artifacts/onnx', 'fp32', False)
    >>> made.known().verification["status"]
    'passed'
    """
    request = _export_request(
        variant=variant,
        config=config,
        checkpoint=checkpoint,
        num_classes=num_classes,
        image_size=image_size,
        batch=batch,
        precision=precision,
        target=target,
        soft_split=soft_split,
        performer=performer,
        embed_preprocess=embed_preprocess,
        tail=tail,
        opset=opset,
        output=output,
    )
    return export_model(workspace_of(workspace), request, progress)


def compare_exports(
    *,
    variant: str | None = None,
    config: AnyPath | None = None,
    checkpoint: AnyPath | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    batch: int | str = "dynamic",
    precision: str | Precision = Precision.FP32,
    target: str | Target = Target.PORTABLE,
    soft_split: str | None = None,
    performer: str | None = None,
    opset: int | None = None,
    progress: Progress = silent,
) -> StrategyComparison:
    """What every combination of strategies costs and loses: ``t2t-deploy export --compare``.

    Nothing is kept. Raises as `export_onnx`.
    """
    request = _export_request(
        variant=variant,
        config=config,
        checkpoint=checkpoint,
        num_classes=num_classes,
        image_size=image_size,
        batch=batch,
        precision=precision,
        target=target,
        soft_split=soft_split,
        performer=performer,
        embed_preprocess=False,
        tail=Tail.LOGITS,
        opset=opset,
        output=None,
    )
    return compare_strategies(request, progress)


def calibrate_onnx(
    artifact: AnyPath | None = None,
    *,
    images: AnyPath,
    count: int = DEFAULT_COUNT,
    method: str | RangeMethod = DEFAULT_METHOD,
    equalise: bool = True,
    target: str | Target | None = None,
    force: bool = False,
    output: AnyPath | None = None,
    workspace: Workspace | AnyPath | None = None,
    progress: Progress = silent,
) -> CalibratedRanges:
    """Take the ranges of what linear layers read: ``t2t-deploy calibrate``.

    artifact: an export; None is the newest. ``images`` is a folder, looked into as a whole. Raises
    ArtifactError, CalibrationError, ImageError, BackendError.

    Examples
    --------
    >>> from t2t_deploy import calibrate_onnx
    >>> ranges = calibrate_onnx(images="train", method="mse")
    >>> len(ranges.calibration.ranges), ranges.reused
    (11, False)
    """
    request = CalibrateRequest(
        images=Path(images),
        artifact=path_of(artifact),
        target=None if target is None else word_of(Target, "target", target),
        count=count,
        method=word_of(RangeMethod, "method", method),
        equalise=equalise,
        output=path_of(output),
        force=force,
    )
    return calibrate_artifact(workspace_of(workspace), request, progress)


def quantize_onnx(
    artifact: AnyPath | None = None,
    *,
    type: str | Precision = Precision.INT8,
    mode: str | QuantizationMode = QuantizationMode.STATIC,
    target: str | Target | None = None,
    base: str | Precision | None = None,
    images: AnyPath | None = None,
    count: int = DEFAULT_COUNT,
    method: str | RangeMethod = DEFAULT_METHOD,
    equalise: bool = True,
    ranges: AnyPath | None = None,
    placement: str | None = None,
    max_drop: float | None = None,
    eval: AnyPath | None = None,
    speed: bool = True,
    force: bool = False,
    output: AnyPath | None = None,
    workspace: Workspace | AnyPath | None = None,
    progress: Progress = silent,
) -> Artifact:
    """Quantise the linear layers of an export, and verify the file: ``t2t-deploy quantize``.

    artifact: an export; None is the newest. placement: auto, balanced, compact or accurate, for
    engines; None is balanced. max_drop: points of accuracy on the folder ``eval``. A
    budget that cannot be met, and a failed verification, are in the manifest. Raises UsageError,
    CalibrationError, ArtifactError, ImageError, ExportError, MissingDependencyError.

    Examples
    --------
    >>> from t2t_deploy import quantize_onnx
    >>> small = quantize_onnx(images="train", speed=False)
    >>> small.known().details["quantization"]["quantized_nodes"], small.known().failed
    (16, False)
    """
    request = QuantizeRequest(
        artifact=path_of(artifact),
        precision=word_of(Precision, "type", type),
        mode=word_of(QuantizationMode, "mode", mode),
        target=None if target is None else word_of(Target, "target", target),
        base=None if base is None else word_of(Precision, "base", base),
        images=path_of(images),
        count=count,
        method=word_of(RangeMethod, "method", method),
        ranges=path_of(ranges),
        equalise=equalise,
        placement=placement,
        max_drop=max_drop,
        eval_images=path_of(eval),
        measure_speed=speed,
        output=path_of(output),
        force=force,
    )
    return quantize_artifact(workspace_of(workspace), request, progress)


def build_engine(
    artifact: AnyPath | None = None,
    *,
    precision: str | Precision | None = None,
    backend: str = "auto",
    sm: str | None = None,
    min_batch: int | None = None,
    opt_batch: int | None = None,
    max_batch: int | None = None,
    profile: str | Sequence[str] = (),
    memory_limit: int | None = None,
    images: AnyPath | None = None,
    count: int = DEFAULT_COUNT,
    placement: str | None = None,
    opt_level: int | None = None,
    force: bool = False,
    output: AnyPath | None = None,
    workspace: Workspace | AnyPath | None = None,
    progress: Progress = silent,
) -> Artifact:
    """Build a TensorRT engine and attest what is in it: ``t2t-deploy build-trt``.

    artifact: a graph; None is the newest export. precision: None is the graph's. placement: as of
    `quantize_onnx`. memory_limit in MiB. The attestation's verdict is in the manifest. Raises
    ArtifactError, EngineError, BackendError, UsageError, MissingDependencyError where there is no
    builder.

    Examples
    --------
    >>> from t2t_deploy import build_engine
    >>> engine = build_engine(made.path, precision="fp16", sm="86", profile="1:4:8")
    >>> figures = engine.known().details
    >>> figures["attestation"]["status"], figures["engine"]["profiles"]
    ('passed', ['1:4:8'])
    """
    request = BuildRequest(
        artifact=path_of(artifact),
        precision=None if precision is None else word_of(Precision, "precision", precision),
        profiles=chosen_profiles(words_of(profile), min_batch, opt_batch, max_batch),
        sm=sm,
        memory_limit_mib=memory_limit,
        backend=backend,
        optimization_level=opt_level,
        images=path_of(images),
        count=count,
        placement=placement,
        output=path_of(output),
        force=force,
    )
    return build_trt(workspace_of(workspace), request, progress)


def package_artifact(
    artifact: AnyPath | None = None,
    *,
    triton: AnyPath,
    format: str | ServingFormat | None = None,
    name: str | None = None,
    labels: AnyPath | None = None,
    top: int | None = None,
    max_batch: int | None = None,
    accelerator: str | Accelerator | None = None,
    queue_delay: int | None = None,
    instances: int | None = None,
    preprocess_instances: int | None = None,
    threads: int | None = None,
    force: bool = False,
    workspace: Workspace | AnyPath | None = None,
    progress: Progress = silent,
) -> Package:
    """Write a model repository for Triton: ``t2t-deploy package``.

    artifact: None is the newest. triton: the repository's folder. queue_delay in microseconds.
    Raises ArtifactError, UsageError.

    Examples
    --------
    >>> from t2t_deploy import package_artifact
    >>> [folder.name for folder in package_artifact(made.path, triton="models").folders]
    ... # doctest: +NORMALIZE_WHITESPACE
    ['t2t_vit_tiny_fp32', 't2t_vit_tiny_fp32_preprocess', 't2t_vit_tiny_fp32_postprocess',
     't2t_vit_tiny_fp32_images']
    """
    counts = {
        "top": top,
        "queue_delay_us": queue_delay,
        "instances": instances,
        "preprocess_instances": preprocess_instances,
        "threads": threads,
    }
    chosen = None if format in (None, "auto") else word_of(ServingFormat, "format", str(format))
    request = PackageRequest(
        repository=Path(triton),
        artifact=path_of(artifact),
        format=format if isinstance(format, ServingFormat) else chosen,
        name=name,
        labels=path_of(labels),
        max_batch=max_batch,
        accelerator=None
        if accelerator is None
        else word_of(Accelerator, "accelerator", accelerator),
        force=force,
        **{name: value for name, value in counts.items() if value is not None},
    )
    return _package_artifact(workspace_of(workspace), request, progress)


def run_recipe(
    recipe: AnyPath,
    *,
    workspace: Workspace | AnyPath | None = None,
    progress: Progress = silent,
) -> RecipeRun:
    """Follow a recipe, going on where an earlier run of it stopped: ``t2t-deploy run``.

    workspace: None is the recipe's own, else as elsewhere. What cannot be done is told in the
    result. Raises RecipeError for a file that is no recipe.

    Examples
    --------
    >>> from t2t_deploy import run_recipe
    >>> for step in run_recipe("recipe.toml").steps:
    ...     print(step.step, step.status.value)
    export float done
    quantize int8 done
    >>> {step.status.value for step in run_recipe("recipe.toml").steps}
    {'skipped'}
    """
    loaded = load_recipe(Path(recipe))
    chosen = workspace if workspace is not None else loaded.workspace
    return _run_recipe(workspace_of(chosen), loaded, progress)


def _export_request(
    *,
    variant: str | None,
    config: AnyPath | None,
    checkpoint: AnyPath | None,
    num_classes: int | None,
    image_size: int | None,
    batch: int | str,
    precision: str | Precision,
    target: str | Target,
    soft_split: str | None,
    performer: str | None,
    embed_preprocess: bool,
    tail: str | Tail,
    opset: int | None,
    output: AnyPath | None,
) -> ExportRequest:
    return ExportRequest(
        variant=variant,
        config_file=path_of(config),
        checkpoint=path_of(checkpoint),
        num_classes=num_classes,
        image_size=image_size,
        batch=batch_of(batch),
        precision=word_of(Precision, "precision", precision),
        target=word_of(Target, "target", target),
        soft_split=soft_split,
        performer=performer,
        opset=opset,
        graph_io=GraphIO(embed_preprocess, word_of(Tail, "tail", tail)),
        output=path_of(output),
    )
