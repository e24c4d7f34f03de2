"""checkpoint -> deploy form -> ONNX file, verified against the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from t2t_deploy._codec import to_plain
from t2t_deploy._files import file_sha256
from t2t_deploy._optional import require
from t2t_deploy._options import (
    BATCH,
    FILE,
    SIZE,
    TEXT,
    AnyPath,
    Opt,
    Role,
    choice,
    command,
    several,
    whole,
)
from t2t_deploy._progress import Progress, silent
from t2t_deploy.commands._artifacts import artifact_values, workspace_of
from t2t_deploy.commands._class_names import OwnLabels, chosen_names
from t2t_deploy.commands._preparation import (
    CropFraction,
    InterpolationName,
    Mean,
    PreparationName,
    ResizeRule,
    Std,
    choose_preparation,
)
from t2t_deploy.errors import UsageError
from t2t_deploy.model import VARIANTS
from t2t_deploy.types import (
    ATTENTION_OPSET,
    BARE,
    MIN_OPSET,
    QUANTIZED,
    GraphIO,
    Precision,
    Tail,
    Target,
)
from t2t_deploy.verify import verify_file
from t2t_deploy.workspace import Artifact, Manifest, Workspace

if TYPE_CHECKING:
    import onnx
    from torch import Tensor

    from t2t_deploy.export import RewriteReport, Strategies
    from t2t_deploy.model import ModelConfig, T2TViT

RANDOM_SEED = 0

Variant = Annotated[
    str | None,
    Opt(
        "A released variant; see 't2t-deploy variants'.",
        metavar="V",
        recipe="model",
        completions=lambda word: [name for name in VARIANTS if name.startswith(word)],
    ),
]
ConfigFile = Annotated[
    AnyPath | None,
    Opt("TOML file with a model's own dimensions.", role=Role.READS, recipe="model"),
]
CheckpointFile = Annotated[
    AnyPath | None,
    Opt(
        "Weights: .pth.tar, .pth or .safetensors. Without it: seeded random weights.",
        role=Role.READS,
        recipe="model",
    ),
]
Classes = Annotated[int | None, Opt("Classes; default the checkpoint's.", recipe="model")]
ImageSize = Annotated[
    int | tuple[int, int] | str | None,
    Opt(
        "Pixels, height x width where not square; default the checkpoint's.",
        SIZE,
        metavar="N|HxW",
        recipe="model",
    ),
]
Weights = Annotated[
    str | None,
    Opt(
        "The set of weights to take, where the file has several; default the average.",
        metavar="NAME",
        recipe="model",
        later=True,
    ),
]
IgnoreKeys = Annotated[
    Sequence[str] | None,
    Opt(
        "Leave out weights whose names fit, such as 'aux_head.*'; may be repeated.",
        several(TEXT),
        metavar="PATTERN",
        recipe="model",
        later=True,
    ),
]
QkScale = Annotated[
    str | None,
    Opt(
        "How q·k was scaled in training: as the released model, or as mmpretrain 1.x.",
        choice("released", "mmpretrain"),
        recipe="model",
        later=True,
    ),
]
Batch = Annotated[int | str | None, Opt(kind=BATCH, shown="dynamic")]
FloatPrecision = Annotated[
    str | Precision,
    Opt(
        "Arithmetic; inputs and outputs stay float32.",
        choice("fp32", "fp16", "bf16", of=Precision),
        shown="fp32",
    ),
]
GraphTarget = Annotated[
    str | Target, Opt("What the graph is made for.", choice(of=Target), shown="portable")
]
SoftSplit = Annotated[
    str | None,
    Opt(
        "unfold, conv, folded, centred, normalised, shifted or auto; one, or three separated by "
        "commas.",
        shown="auto",
    ),
]
Performer = Annotated[str | None, Opt("plain, stable, softmax, entropy or auto.", shown="auto")]
Opset = Annotated[
    int | None,
    Opt(
        "ONNX opset, 17 to 20, default 18; 23 for a faster attention of target cpu, which ONNX "
        "Runtime has from 1.23 on.",
        replace(whole(MIN_OPSET, ATTENTION_OPSET), bounds=None),
    ),
]
OutputFile = Annotated[
    AnyPath | None,
    Opt("Write here instead of the workspace.", FILE, Role.WRITES, flags=("-o",)),
]


@dataclass(frozen=True, slots=True)
class GraphForm:
    """The form of an exported graph; None means the default named in the field's comment."""

    batch: int | None = None  # dynamic
    precision: Precision = Precision.FP32
    target: Target = Target.PORTABLE
    soft_split: str | None = None  # the target's
    performer: str | None = None  # the target's
    opset: int | None = None  # the exporter's default
    graph_io: GraphIO = BARE  # normalised images in, logits out

    @classmethod
    def of(cls, given: Mapping[str, Any], graph_io: GraphIO = BARE) -> GraphForm:
        """The form that arguments of `export_onnx` ask for, as it has read them."""
        names = ("batch", "precision", "target", "soft_split", "performer", "opset")
        return cls(**{name: given[name] for name in names}, graph_io=graph_io)

    def strategies(self) -> Strategies:
        """The forms of the rewrites. Raises UsageError for unknown words."""
        from t2t_deploy.export import choose_strategies

        return choose_strategies(self.target, self.soft_split, self.performer)

    def check(self) -> None:
        """Raise UsageError where it does not fit itself, or the target's runtime."""
        strategies = self.strategies()
        strategies.check_precision(self.precision)
        strategies.check_opset(self.opset, self.precision)
        if self.target is Target.NCNN:
            self._check_ncnn()

    def _check_ncnn(self) -> None:
        tail = self.graph_io.tail
        if self.precision is not Precision.FP32:
            raise UsageError(
                f"{self.precision.value} for ncnn: it reads float32 files of ONNX and stores "
                "weights in half by itself (pnnx, fp16=1); expected precision fp32"
            )
        if self.graph_io.embed_preprocess:
            raise UsageError(
                "a uint8 input for ncnn, whose reader refuses it; leave --embed-preprocess out: "
                "Mat::from_pixels and substract_mean_normalize do that"
            )
        if tail is Tail.TOPK:
            raise UsageError(
                "tail topk for ncnn, which has no TopK: expected softmax, and the largest picked "
                "by the program that runs it"
            )
        if self.batch not in (None, 1):
            raise UsageError(
                f"batch {self.batch} for ncnn, which takes one picture at a time; expected batch 1 "
                "or dynamic"
            )


@command
def export_onnx(
    *,
    variant: Variant = None,
    config: ConfigFile = None,
    checkpoint: CheckpointFile = None,
    num_classes: Classes = None,
    image_size: ImageSize = None,
    weights: Weights = None,
    ignore_keys: IgnoreKeys = None,
    qk_scale: QkScale = None,
    batch: Batch = "dynamic",
    precision: FloatPrecision = Precision.FP32,
    target: GraphTarget = Target.PORTABLE,
    soft_split: SoftSplit = None,
    performer: Performer = None,
    preparation: PreparationName = None,
    resize: ResizeRule = None,
    crop_fraction: CropFraction = None,
    interpolation: InterpolationName = None,
    mean: Mean = None,
    std: Std = None,
    labels: OwnLabels = None,
    embed_preprocess: Annotated[
        bool,
        Opt(
            "Take the picture's pixels, (batch, H, W, C) uint8, and normalise inside the graph.",
            recorded="ends.embed_preprocess",
        ),
    ] = False,
    tail: Annotated[
        str | Tail,
        Opt(
            "softmax: all probabilities; topk: the five largest and their classes; sigmoid: of "
            "each class by itself, for one output or several labels; without the classifier: "
            "embedding, unit-embedding (of length 1), tokens, features (maps).",
            choice(of=Tail),
            shown="logits",
            recorded="ends.tail",
        ),
    ] = Tail.LOGITS,
    opset: Opset = None,
    output: OutputFile = None,
    workspace: Workspace | AnyPath | None = None,
    progress: Progress = silent,
) -> Artifact:
    """Export a checkpoint to ONNX and verify the file against the reference.

    The arguments are the options of ``t2t-deploy export``; None is their default. The graph takes
    ``image``, (batch, C, H, W) float32, normalised, and gives ``logits``, (batch, classes) float32,
    unless ``embed_preprocess`` or ``tail`` say otherwise. How pictures become that input
    (``preparation`` and the five after it) is part of the artifact, and so are the names of its
    classes (``labels``, else the checkpoint's own). A failed verification is no
    exception: it is in the manifest, and later steps refuse the file.

    Raises UsageError for options that contradict each other, CheckpointError, ConfigError,
    ExportError, MissingDependencyError without torch.

    Examples
    --------
    >>> from t2t_deploy import export_onnx
    >>> made = export_onnx(config="tiny.toml")
    >>> manifest = made.require_manifest()
    >>> made.path.parent.as_posix(), manifest.precision.value, manifest.failed
    ('artifacts/onnx', 'fp32', False)
    >>> manifest.verification["status"]
    'passed'
    """
    given = dict(locals())
    workspace = workspace_of(workspace)
    form = GraphForm.of(given, GraphIO(embed_preprocess, Tail(tail)))
    model = load_model(form, given, progress)
    model = with_output(model, form.graph_io)
    check_tail(form.graph_io.tail, model.config.num_classes)
    from t2t_deploy.model import reference_from_state_dict, save_weights

    steps = ("resize", "crop_fraction", "interpolation", "mean", "std")
    prepared = choose_preparation(
        preparation,
        {name: given[name] for name in steps},
        weights=None if checkpoint is None else Path(checkpoint),
        trained_with=model.training_config,
        channels=model.config.in_chans,
        size=model.config.image_hw,
    )
    if checkpoint is not None or not prepared.preparation.usual:
        progress.note(f"pictures ({prepared.source}): {prepared.preparation}")
    names = chosen_names(labels, model.class_names, model.config.num_classes, progress)
    workspace.check_writable("weights", "onnx" if output is None else "", say=progress.note)
    sha256 = workspace.store_weights(lambda path: save_weights(model.state_dict, path))
    reference = reference_from_state_dict(model.state_dict, model.config)
    graph = graph_of_reference(reference, form, progress)
    stored = {"sha256": sha256, "source": model.source}
    draft = draft_manifest(graph, form, stored, prepared.to_details() | names)
    notes = {"notes": list(model.notes)}
    return store_graph(
        workspace, graph, form, draft, progress, output=output, details=lambda path: notes
    )


READ_AS = ("weights", "ignore_keys", "qk_scale")
"""How a checkpoint's weights are read, where it has several or was trained elsewhere."""


def check_of_file(given: Mapping[str, Any]) -> None:
    """Raise UsageError for an argument about a checkpoint where none is given."""
    about = [name for name in READ_AS if given.get(name)]
    if given.get("checkpoint") is None and about:
        raise UsageError(f"{about[0]} is about a checkpoint, and none is given; give one")


def check_tail(tail: Tail, num_classes: int | None) -> None:
    """Raise UsageError for a softmax of one output. num_classes: None is not known."""
    if num_classes == 1 and tail in (Tail.SOFTMAX, Tail.TOPK):
        raise UsageError(
            f"the model has one output, whose softmax is 1 for every picture; give tail "
            f"{Tail.SIGMOID.value}, or leave {tail.value} out"
        )


def export_values(artifact: Artifact) -> dict[str, Any]:
    """What ``export --json`` prints."""
    manifest = artifact.require_manifest()
    return {
        "artifact": artifact_values(artifact),
        "verification": manifest.verification,
        "rewrites": manifest.details["rewrites"],
        "notes": manifest.details["notes"],
    }


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """The model that options name: dimensions, weights, where they came from, what was changed.

    class_names: of its file. training_config: mmengine's, as text.
    """

    config: ModelConfig
    state_dict: dict[str, Tensor]
    source: Mapping[str, Any]
    notes: tuple[str, ...]
    class_names: tuple[str, ...] | None = None
    training_config: str | None = None


def load_model(form: GraphForm, given: Mapping[str, Any], progress: Progress) -> LoadedModel:
    """Read, or draw, the weights that arguments of `export_onnx` name; notes on them are reported.

    An argument that is left out has its default. What is wrong with them, or with the form, is said
    before anything is read. Raises as `export_onnx`.
    """
    variant, config, checkpoint = map(given.get, ("variant", "config", "checkpoint"))
    if variant is not None and config is not None:
        raise UsageError("variant and config both describe the model; give one of them")
    if variant is None and config is None and checkpoint is None:
        raise UsageError("nothing says which model to export; give a variant, such as 14")
    check_of_file(given)
    require("torch")
    from t2t_deploy.model import (
        config_for_variant,
        config_from_toml,
        load_checkpoint,
        random_state_dict,
        weights_file,
    )

    form.check()
    own = None if config is None else config_from_toml(Path(config))
    sizes: dict[str, Any] = {name: given.get(name) for name in ("image_size", "num_classes")}
    if checkpoint is None:
        base = own if own is not None else config_for_variant(str(variant))
        fitted = base.with_(**sizes)
        model = LoadedModel(
            config=fitted,
            state_dict=random_state_dict(fitted, RANDOM_SEED),
            source={"kind": "random", "seed": RANDOM_SEED},
            notes=("the weights are seeded random numbers: they serve benchmarking only",),
        )
    else:
        file = weights_file(Path(checkpoint))
        progress.step(f"reading {file.name}")
        read = load_checkpoint(
            file,
            variant=variant,
            config=own,
            **sizes,
            **{name: given[name] for name in READ_AS if given.get(name)},
        )
        source = {
            "kind": "checkpoint",
            "file": file.name,
            "sha256": file_sha256(file),
            "container": read.container,
        }
        model = LoadedModel(
            read.config,
            read.state_dict,
            source,
            read.notes,
            read.class_names,
            read.training_config,
        )
    for note in model.notes:
        progress.note(note)
    return model


def with_output(model: LoadedModel, graph_io: GraphIO) -> LoadedModel:
    """The model with what its tail is made of: without a classifier where that is not needed.

    Raises UsageError for classes of a model without a classifier.
    """
    from t2t_deploy.model import ModelOutput, weight_shapes

    output = ModelOutput(graph_io.tail.output)
    if output is model.config.output:
        return model
    if output is ModelOutput.LOGITS:
        raise UsageError(
            f"the weights have no classifier, and the tail {graph_io.tail.value} needs one; give "
            "the tail embedding, unit-embedding, tokens or features"
        )
    config = model.config.headless(output)
    kept = weight_shapes(config).keys()
    state_dict = {key: one for key, one in model.state_dict.items() if key in kept}
    return replace(model, config=config, state_dict=state_dict)


@dataclass(frozen=True, slots=True)
class ExportedGraph:
    """A checked graph in memory, and what was made of the model for it."""

    model: onnx.ModelProto
    config: ModelConfig
    strategies: Strategies
    rewrites: RewriteReport
    opset: int


def graph_of_reference(
    reference: T2TViT,
    form: GraphForm,
    progress: Progress = silent,
    *,
    merge_bias: bool = True,
    strategies: Strategies | None = None,
) -> ExportedGraph:
    """The graph of a model, in a form.

    merge_bias: see `onnx_from_deploy`. strategies: others than the form asks for. Raises
    UsageError, ExportError, MissingDependencyError.
    """
    from t2t_deploy.export import DEFAULT_OPSET, DeployT2TViT, onnx_from_deploy
    from t2t_deploy.graph import check_graph

    strategies = strategies or form.strategies()
    opset = DEFAULT_OPSET if form.opset is None else form.opset
    for hazard in strategies.hazards():
        progress.note(f"hazard: {hazard}")
    progress.step(f"exporting {reference.config.name} in {form.precision.value}")
    deploy = DeployT2TViT(reference, strategies, form.precision)
    model = check_graph(
        onnx_from_deploy(deploy, batch=form.batch, opset=opset, merge_bias=merge_bias),
        batch=form.batch,
        contrib=strategies.contrib,
    )
    return ExportedGraph(model, reference.config, strategies, deploy.report, opset)


def graph_of_weights(
    workspace: Workspace,
    manifest: Manifest,
    form: GraphForm,
    progress: Progress = silent,
    *,
    merge_bias: bool = True,
) -> ExportedGraph:
    """The graph of an artifact's stored weights, in a form. Raises as `graph_of_reference`."""
    require("torch")
    from t2t_deploy.model import config_from_dict, load_reference

    reference = load_reference(workspace.weights(manifest), config_from_dict(manifest.config))
    return graph_of_reference(reference, form, progress, merge_bias=merge_bias)


def store_graph(
    workspace: Workspace,
    graph: ExportedGraph,
    form: GraphForm,
    draft: Manifest,
    progress: Progress = silent,
    *,
    output: AnyPath | None = None,
    stem: str | None = None,
    details: Callable[[Path], Mapping[str, Any]] = lambda path: {},
) -> Artifact:
    """Put a graph's inputs and outputs around it, write the file and verify it.

    draft: as of `draft_manifest`. stem: of the file's name; None is `artifact_stem`. details: what
    else the manifest has on the file that was written.
    """
    import onnx

    model = graph.model
    if not form.graph_io.bare or draft.precision in QUANTIZED:
        from t2t_deploy.graph import check_graph, with_graph_io

        model = check_graph(
            with_graph_io(model, form.graph_io, draft.preparation),
            batch=form.batch,
            contrib=graph.strategies.contrib,
        )
    if draft.class_names is not None:
        from t2t_deploy.graph import with_class_names

        model = with_class_names(model, draft.class_names)
    weights = workspace.weights_path(draft.weights["sha256"])
    # nothing of what every graph has
    ends: dict[str, Any] = {"embed_preprocess": True} if form.graph_io.embed_preprocess else {}
    if form.graph_io.tail is not Tail.LOGITS:
        ends["tail"] = form.graph_io.tail.value

    def write(path: Path) -> dict[str, Any]:
        onnx.save(model, path)
        progress.step("verifying the file against the reference")
        return {
            "verification": verify_file(path, draft, weights).to_dict(),
            "details": {
                "asked": {"soft_split": form.soft_split, "performer": form.performer, **ends},
                "rewrites": {
                    "applied": dict(graph.rewrites.applied),
                    "refused": dict(graph.rewrites.refused),
                },
                "nodes": len(model.graph.node),
                **draft.details,
                **details(path),
            },
        }

    return workspace.store(draft, write, stem=stem or artifact_stem(draft), output=output)


def draft_manifest(
    graph: ExportedGraph,
    form: GraphForm,
    weights: Mapping[str, Any],
    handed_on: Mapping[str, Any],
) -> Manifest:
    """What is known of an exported graph before it is a file.

    handed_on: as of `Manifest.handed_on`.
    """
    return Manifest(
        kind="onnx",
        file="",
        sha256="",
        size_bytes=0,
        variant=graph.config.name,
        precision=form.precision,
        config=graph.config.to_dict(),
        batch=form.batch,
        target=form.target.value,
        weights=weights,
        opset=graph.opset,
        strategies=to_plain(graph.strategies),
        parents=({"kind": "weights", "sha256": weights["sha256"]},),
        details={**handed_on, **form.graph_io.to_details()},
    )


def forms_asked(manifest: Manifest) -> GraphForm:
    """A form with the rewrites that an export was asked for, and no more."""
    return GraphForm(soft_split=manifest.asked.soft_split, performer=manifest.asked.performer)


def artifact_stem(manifest: Manifest) -> str:
    """A file name by which people know the artifact; the hash does the rest."""
    name = "".join(c if c.isalnum() or c in "-_" else "_" for c in manifest.variant)[:40]
    words = [name, manifest.size_text, manifest.precision.value, manifest.target]
    if manifest.batch is not None:
        words.append(f"b{manifest.batch}")
    words += manifest.graph_io.words
    return "-".join(words)
