"""What other runtimes make of our files: one table of runtimes and kinds of file.

Each runtime lives in an environment of its own below .venv-runtimes, with the pinned packages of
`RUNTIMES`, and runs `runtime_runners.py` (or its .mjs for Node) on one file at a time: three
pictures one by one, and all three at once. The error is of the worst picture, relative L2 against
the float64 reference on the original weights. docs/runtimes.md holds the table, with causes.

    make test-runtimes ARGS="--only tract --locate"
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from t2t_deploy._files import write_text
from t2t_deploy._progress import silent
from t2t_deploy.commands import export_onnx, quantize_onnx
from t2t_deploy.errors import DeployError, one_line
from t2t_deploy.graph import check_conformance, read_onnx
from t2t_deploy.types import (
    INDICES_NAME,
    OUTPUT_NAME,
    PROBABILITIES_NAME,
    TOLERANCES,
    Precision,
    Tail,
    relative_errors,
    softmax,
)
from t2t_deploy.workspace import Artifact, Manifest, Workspace

ROOT = Path(__file__).parents[1]
BATCHES = (1, 3)
_TIMEOUT_S = 900
_REASON_CHARS = 150
_UNASKED = "not applicable"
_NUMPY = "numpy==2.4.6"
_TORCH = "torch==2.13.0"
# of two rows each
_REFERENCE = ("onnx==1.23.2", "ml_dtypes==0.6.0", _NUMPY)
_EP_OPENVINO = ("onnxruntime-ep-openvino==1.8.1", "onnxruntime==1.31.1", _NUMPY)
_ONNX2TORCH = ("onnx2torch==1.5.15", _TORCH, "torchvision==0.28.0")
_EXECUTORCH = ("executorch==1.5.1", _TORCH)
_NCNN = ("ncnn==1.0.20261020", "pnnx==20261020", _TORCH, _NUMPY)


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime, the packages that its environment is made of, and the runner that drives it.

    takes: what the runner is given: the .onnx file, or the module that the file was traced from, as
    torch.export saved it. needs: a program that no package brings. option: one of `OPTIONS`, which
    all its files are exported with. known: its name for `t2t-deploy inspect --runtime`; "" where it
    takes no ONNX file.
    """

    name: str
    runner: str
    packages: tuple[str, ...]
    known: str = ""
    takes: str = "onnx"
    needs: str | None = None
    option: str = ""

    @property
    def title(self) -> str:
        """Its name, with the option of its files."""
        return f"{self.name}, {self.option}" if self.option else self.name

    @property
    def files(self) -> tuple[File, ...]:
        """What it is given."""
        return tuple(dataclasses.replace(file, option=self.option) for file in FILES)

    @property
    def of_npm(self) -> bool:
        """Whether the packages are npm's."""
        return "@" in self.packages[0]


RUNTIMES = (
    Runtime(
        "onnx ReferenceEvaluator",
        "reference",
        _REFERENCE,
        "onnx-reference",
    ),
    Runtime(
        "onnx ReferenceEvaluator",
        "reference",
        _REFERENCE,
        "onnx-reference",
        option="--opset 19",
    ),
    Runtime("onnxruntime 1.31.1", "onnxruntime", ("onnxruntime==1.31.1", _NUMPY), "onnxruntime"),
    Runtime("onnxruntime 1.32.0", "onnxruntime", ("onnxruntime==1.32.0", _NUMPY), "onnxruntime"),
    Runtime(
        "onnxruntime-node", "node", ("onnxruntime-node@1.30.0",), "onnxruntime-node", needs="node"
    ),
    Runtime(
        "onnxruntime-web, wasm in Node",
        "web",
        ("onnxruntime-web@1.30.0",),
        "onnxruntime-web",
        needs="node",
    ),
    Runtime(
        "onnxruntime-web, wasm",
        "wasm",
        ("onnxruntime-web@1.30.0",),
        "onnxruntime-web",
        needs="chromium",
    ),
    Runtime(
        "onnxruntime-web, WebGPU",
        "webgpu",
        ("onnxruntime-web@1.30.0",),
        "onnxruntime-webgpu",
        needs="chromium",
    ),
    Runtime("openvino", "openvino", ("openvino==2026.4.1", _NUMPY), "openvino"),
    Runtime("openvino, f32 hint", "openvino_f32", ("openvino==2026.4.1", _NUMPY), "openvino-f32"),
    Runtime(
        "onnxruntime-openvino",
        "onnxruntime_openvino",
        ("onnxruntime-openvino==1.24.1", _NUMPY),
        "onnxruntime-openvino",
    ),
    Runtime(
        "onnxruntime-ep-openvino",
        "openvino_ep",
        _EP_OPENVINO,
        "onnxruntime-ep-openvino",
    ),
    Runtime(
        "onnxruntime-ep-openvino, f32 hint",
        "openvino_ep_f32",
        _EP_OPENVINO,
        "openvino-f32",
    ),
    Runtime(
        "onnxruntime-ggml",
        "ggml_ep",
        ("onnxruntime-ggml==0.2.0", "onnxruntime==1.30.0", _NUMPY),
        "onnxruntime-ggml",
    ),
    Runtime("nxrt", "nxrt", ("nxrt==0.1.0.dev6", "ml_dtypes==0.6.0", _NUMPY), "nxrt"),
    Runtime("tract", "tract", ("tract==0.23.9", _NUMPY), "tract"),
    Runtime("OpenCV dnn", "opencv", ("opencv-python-headless==5.0.0.93", _NUMPY), "opencv"),
    Runtime("tinygrad", "tinygrad", ("tinygrad==0.14.0", _NUMPY), "tinygrad", needs="clang"),
    Runtime(
        "IREE",
        "iree",
        ("iree-base-compiler[onnx]==3.13.0", "iree-base-runtime==3.13.0", "onnx==1.23.2", _NUMPY),
        "iree",
    ),
    Runtime("TVM", "tvm", ("apache-tvm==0.27.0.post1", "onnx==1.23.2", _NUMPY), "tvm"),
    Runtime("MNN", "mnn", ("mnn==3.6.1", _NUMPY), "mnn"),
    Runtime(
        "LiteRT, onnx2tf -rtpo Erf",
        "onnx2tf",
        ("onnx2tf==1.29.24", "ai-edge-litert==2.1.0"),
        "litert",
    ),
    Runtime(
        "onnx2torch",
        "onnx2torch",
        _ONNX2TORCH,
        "onnx2torch",
    ),
    Runtime(
        "onnx2torch",
        "onnx2torch",
        _ONNX2TORCH,
        "onnx2torch",
        option="--opset 17 --soft-split unfold --performer softmax",
    ),
    Runtime(
        "LiteRT, litert-torch",
        "litert_torch",
        ("litert-torch==0.10.0", "ai-edge-litert==2.3.0", _TORCH),
        takes="torch",
    ),
    Runtime("ExecuTorch", "executorch", _EXECUTORCH, takes="torch"),
    Runtime(
        "ExecuTorch, norms written out",
        "executorch_norms",
        _EXECUTORCH,
        takes="torch",
    ),
    Runtime("ncnn", "ncnn", _NCNN, "ncnn"),
    Runtime(
        "ncnn",
        "ncnn",
        _NCNN,
        "ncnn",
        option="--target ncnn",
    ),
)


@dataclass(frozen=True, slots=True)
class Kind:
    """A column of the table: how its file is exported, and quantised."""

    name: str
    export: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    quantize: Mapping[str, Any] | None = None


KINDS = (
    Kind("fp32"),
    Kind("fp16", {"precision": "fp16"}),
    Kind("bf16", {"precision": "bf16"}),
    Kind("int8 static", quantize={}),
    Kind("int8 dynamic", quantize={"mode": "dynamic", "codes": "exact"}),
    Kind("topk tail", {"tail": "topk"}),
    Kind("uint8 input", {"embed_preprocess": True}),
    Kind("embedding", {"tail": "embedding"}),
)
SMALL = ("performer", "transformer")
LARGE = ("14", "t_14")
LARGE_KINDS = ("fp32", "int8 static")
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "": {},
    "--opset 17 --soft-split unfold --performer softmax": {
        "opset": 17,
        "soft_split": "unfold",
        "performer": "softmax",
    },
    "--opset 19": {"opset": 19},
    "--target ncnn": {"target": "ncnn"},
}


@dataclass(frozen=True, slots=True)
class File:
    """One file that every runtime is given, or one of those exported with an option."""

    model: str
    kind: Kind
    option: str = ""

    @property
    def column(self) -> str:
        """The model and the column of the table."""
        return f"{self.model}-{self.kind.name.replace(' ', '-')}"

    @property
    def stem(self) -> str:
        """Its name without an ending."""
        return self.column + re.sub(r"\W+", "-", self.option.removeprefix("-"))


FILES = tuple(
    File(model, kind)
    for model in (*SMALL, *LARGE)
    for kind in KINDS
    if model in SMALL or kind.name in LARGE_KINDS
)


def files_of(chosen: Iterable[Runtime]) -> Iterable[File]:
    """What those runtimes are given, each file once."""
    return {file.stem: file for runtime in chosen for file in runtime.files}.values()


@dataclass(frozen=True, slots=True)
class Cell:
    """What a runtime made of a file: an error for each batch, or why there is none."""

    error: Mapping[str, float | None]
    reason: Mapping[str, str]
    tolerance: float
    first: str | None = None
    """the first tensor that differs"""

    def text(self, notes: list[str] | None = None) -> str:
        """The error, the larger of the two batches; reasons as numbers of notes, which grow."""
        words = []
        for found in self.error.values():
            if found is not None:
                good = found <= self.tolerance
                words.append(f"{found:.1e}" if good else f"**{found:.1e}**")
        if len(words) == len(BATCHES):
            first, second = self.error.values()
            if (first <= self.tolerance) == (second <= self.tolerance):  # type: ignore[operator]
                words = [max(words, key=lambda word: float(word.strip("*")))]
            else:
                words = [f"{word} at {n}" for n, word in zip(BATCHES, words, strict=True)]
        for batch, why in self.reason.items():
            at = "" if batch == "load" or len(self.reason) == len(BATCHES) else f" at {batch}"
            no = "n/a" if why.startswith(_UNASKED) else "no"
            words.append(f"{no}{at}: {why}" if notes is None else f"{no}{at} {_noted(why, notes)}")
        text = ", ".join(dict.fromkeys(words))
        if not self.first:
            return text
        differs = f"the first tensor that differs is {self.first}"
        return f"{text}, {differs}" if notes is None else f"{text} {_noted(differs, notes)}"

    @property
    def right(self) -> bool:
        """Whether both batches, or the one that it takes, are within the tolerance."""
        left_out = [batch for batch, found in self.error.items() if found is None]
        found = [error for error in self.error.values() if error is not None]
        return (
            bool(found)
            and all(error <= self.tolerance for error in found)
            and all(self.reason.get(batch, "").startswith(_UNASKED) for batch in left_out)
        )

    @property
    def unasked(self) -> bool:
        """Whether there is no such file, or nothing here to run it."""
        return self.reason.get("load", "").startswith((_UNASKED, "not run"))


# What reasons of one cause begin with or hold, and the cause in words of ours.
_CAUSES = (
    ("DequantizeLinear' domain '' and version 18", "knows DequantizeLinear from opset 19 on"),
    (r"zip\(\) argument 2 is shorter", "gives no output"),
    ("Not Support: ONNX::MultiHeadAttention", "mnnconvert does not know MultiHeadAttention"),
)


def _noted(why: str, notes: list[str]) -> str:
    """The number of the note on that cause, which is added where there is none."""
    note = next((words for pattern, words in _CAUSES if re.search(pattern, why)), why)
    if note not in notes:
        notes.append(note)
    return f"[{notes.index(note) + 1}]"


# -- the files, and what is right ------------------------------------------------------------------


def make_files(folder: Path, files: Iterable[File]) -> None:
    """Export and quantise what is not there yet; with the inputs and the float64 answers."""
    for file in files:
        path, about = (folder / f"{file.stem}.{ending}" for ending in ("onnx", "json"))
        if about.is_file():
            continue
        _tell(f"making {path.name}")
        workspace = Workspace(folder / "workspace")
        source: dict[str, Any] = {"variant": file.model}
        if file.model in SMALL:
            digits = ROOT / "tests" / "digits" / file.model
            source = {"config": f"{digits}.toml", "checkpoint": f"{digits}.pth.tar"}
        try:
            made = _made(file, folder, source, workspace)
        except DeployError as err:
            write_text(about, json.dumps({"refused": str(err)}))
            continue
        shutil.copy(made.path, path)
        manifest = made.require_manifest()
        if file.kind.quantize is None and not file.option:
            _save_module(folder, file, source)
        weights = workspace.root / "weights" / f"{manifest.weights['sha256']}.safetensors"
        pictures = _pictures(manifest, small=file.model in SMALL)
        expected = _expected(weights, manifest, pictures)
        fed = manifest.preparation.pixels_of(pictures) if _of_pixels(manifest) else pictures
        np.savez(folder / f"{file.stem}.npz", **{"image": fed, **expected})  # type: ignore[arg-type]
        write_text(about, json.dumps(_about(file, manifest)))


def _made(file: File, folder: Path, source: Mapping[str, Any], workspace: Workspace) -> Artifact:
    """The file in the workspace. Raises DeployError where there is no such form."""
    words = {**file.kind.export, **OPTIONS[file.option]}
    made = export_onnx(**source, **words, workspace=workspace)
    if file.kind.quantize is None:
        return made
    options = {"speed": False, "target": words.get("target"), **file.kind.quantize}
    if "mode" not in options:  # else ranges are taken at run time
        options["images"] = _calibration(folder, small=file.model in SMALL)
    return quantize_onnx(made.path, **options, workspace=workspace)


def _of_pixels(manifest: Manifest) -> bool:
    return manifest.graph_io.embed_preprocess


def _about(file: File, manifest: Manifest) -> dict[str, Any]:
    return {"tolerance": TOLERANCES[manifest.precision].rel_l2, "tail": manifest.graph_io.tail}


def _calibration(folder: Path, *, small: bool) -> Path:
    images = folder / ("digits" if small else "crops")
    if not images.is_dir():
        if small:
            from digits import digits_split

            digits_split().calibration.write(images)
        else:
            from natural import write_calibration_crops

            write_calibration_crops(images, 64)
    return images


def _pictures(manifest: Manifest, *, small: bool) -> np.ndarray:
    count, size = max(BATCHES), manifest.preparation.size[0]
    if small:
        from digits import digits_split

        return digits_split().test.inputs(size)[:count]
    from natural import held_out_crops

    return held_out_crops(count, size)


def _expected(weights: Path, manifest: Manifest, pictures: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs of the float64 reference, and the typical norm of logits."""
    import torch

    from t2t_deploy.model import config_from_dict, load_reference

    config = config_from_dict(manifest.config)
    model = load_reference(weights, config).double()
    with torch.inference_mode():
        found = [model.outputs(torch.from_numpy(one[None]).double()) for one in pictures]
    names = [*config.output_shapes]
    outputs = {
        name: torch.cat([one[index] for one in found]).numpy() for index, name in enumerate(names)
    }
    return outputs | {"typical": np.array(model.typical_norm())}


def _save_module(folder: Path, file: File, source: Mapping[str, Any]) -> None:
    """The module that the file was traced from, for runtimes that take no ONNX."""
    import torch

    from t2t_deploy.commands._export import GraphForm, load_model, with_output
    from t2t_deploy.export import DeployT2TViT
    from t2t_deploy.model import reference_from_state_dict
    from t2t_deploy.types import GraphIO

    words = dict(file.kind.export)
    graph_io = GraphIO(bool(words.get("embed_preprocess")), Tail(words.get("tail", "logits")))
    if graph_io.embed_preprocess or graph_io.tail.appended:
        return  # appended to the graph, not to the module
    form = GraphForm(precision=Precision(words.get("precision", "fp32")), graph_io=graph_io)
    model = with_output(load_model(form, source, silent), graph_io)
    reference = reference_from_state_dict(model.state_dict, model.config)
    module = DeployT2TViT(reference, form.strategies(), form.precision).eval()
    for batch in BATCHES:
        example = torch.zeros(batch, *model.config.input_shape)
        with torch.inference_mode():
            exported = torch.export.export(module, (example,))
        torch.export.save(exported, folder / f"{file.stem}-{batch}.pt2")


# -- running ---------------------------------------------------------------------------------------


def environment(runtime: Runtime, folder: Path) -> Path:
    """The runtime's environment, named by its first package, made unless it is there.

    Raises DeployError.
    """
    home = folder / re.sub(r"[^\w.]+", "-", runtime.packages[0])
    ready, pins = home / ".ready", "\n".join(runtime.packages)
    if ready.is_file() and ready.read_text() == pins:
        return home
    shutil.rmtree(home, ignore_errors=True)
    _tell(f"installing {', '.join(runtime.packages)}")
    if runtime.of_npm:
        home.mkdir(parents=True)
        versions = dict(one.rsplit("@", 1) for one in runtime.packages)
        write_text(home / "package.json", json.dumps({"dependencies": versions}))
        command = ["npm", "install", "--no-audit", "--no-fund", "--silent", "--prefix", str(home)]
        own = {"ONNXRUNTIME_NODE_INSTALL": "skip"}  # its CUDA files come from elsewhere
    else:
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        command = [str(home / "bin" / "python"), "-m", "pip", "install", "-q"]
        command += ["--disable-pip-version-check", *runtime.packages]
        own = {}
    done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise DeployError(f"not installed: {one_line(lines[-1])}")
    ready.write_text(pins)
    return home


def run(runtime: Runtime, home: Path, path: Path, inputs: Path, out: Path) -> dict[str, Any]:
    """Run one file: its version, outputs {batch: {name: array}}, and reasons {batch: why not}."""
    here = Path(__file__).parent
    if not runtime.of_npm:
        program = [home / "bin" / "python", here / "runtime_runners.py", runtime.runner]
    elif runtime.needs == "chromium":
        program = [sys.executable, here / "runtime_browser.py", runtime.runner]
    else:
        program = ["node", here / "runtime_runner.mjs", runtime.runner]
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    write_text(out / "ends.json", json.dumps(_ends(path)))
    with np.load(inputs) as arrays:
        arrays["image"].tofile(out / "input.bin")
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    # MNN's converter runs pip, to report its use
    own = {"RUNTIME_HOME": str(home), "CUDA_VISIBLE_DEVICES": "", "PIP_NO_INDEX": "1"}
    env = {**os.environ, **threads, **own}
    env.pop("PYTHONPATH", None)
    try:
        done = subprocess.run(
            [*map(str, program), str(path.absolute()), str(out.absolute())],
            env=env,
            cwd=out,
            timeout=_TIMEOUT_S,
            capture_output=True,
            text=True,
        )
    except subprocess.TimeoutExpired:
        return {"reasons": {"load": f"no answer in {_TIMEOUT_S} s"}}
    answer = out / "answer.json"
    if not answer.is_file():
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or [""]
        if done.returncode < 0:
            return {"reasons": {"load": "ends without a result"}}
        return {"reasons": {"load": f"ends with status {done.returncode}: {_short(last[0])}"}}
    found: dict[str, Any] = json.loads(answer.read_text())
    found["outputs"] = {}
    for batch in map(str, BATCHES):
        if batch not in found["reasons"] and "load" not in found["reasons"]:
            names = found["names"][batch]
            found["outputs"][batch] = {
                name: np.load(out / f"{batch}-{index}.npy") for index, name in enumerate(names)
            }
    return found


def _ends(path: Path) -> dict[str, Any]:
    """What runners without onnx have to know of a file."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    (taken,) = graph.input
    kind = taken.type.tensor_type
    return {
        "inputs": [taken.name],
        "outputs": [one.name for one in graph.output],
        "sides": [side.dim_value for side in kind.shape.dim[1:]],
        "kind": onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name,
    }


def judge(found: Mapping[str, Any], expected: Mapping[str, np.ndarray], about: Any) -> Cell:
    """The errors of a run against the float64 reference."""
    tolerance = about["tolerance"]
    if "load" in found["reasons"]:
        return Cell({}, {"load": _short(found["reasons"]["load"])}, tolerance)
    errors: dict[str, float | None] = {}
    for batch in map(str, BATCHES):
        outputs = found["outputs"].get(batch)
        errors[batch] = None if outputs is None else output_error(outputs, expected, about["tail"])
    return Cell(errors, {key: _short(why) for key, why in found["reasons"].items()}, tolerance)


def output_error(
    outputs: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], tail: str
) -> float:
    """Of the worst picture; infinite where the shape or the number of outputs is another."""
    if tail == "topk":
        every = softmax(expected[OUTPUT_NAME])
        values, indices = _two(outputs)
        if values is None or indices is None or values.shape[0] != len(every):
            return float("inf")
        indices = indices.astype(np.int64)
        if indices.min() < 0 or indices.max() >= every.shape[1]:
            return float("inf")
        own = np.take_along_axis(every, indices, 1)
        largest = -np.sort(-every, axis=1)[:, : indices.shape[1]]
        return float(max(relative_errors(values, own).max(), relative_errors(own, largest).max()))
    (name,) = (key for key in expected if key not in ("image", "typical"))
    actual = next(iter(outputs.values()))
    rows = expected[name]
    if actual.size != rows.size:
        return float("inf")
    typical = float(expected["typical"]) if name == OUTPUT_NAME else 0.0
    own, right = (np.reshape(one, (len(rows), -1)) for one in (actual, rows))
    return float(relative_errors(own, right, typical).max())


def _two(outputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Probabilities and indices, by name, else by order."""
    if PROBABILITIES_NAME in outputs:
        return outputs[PROBABILITIES_NAME], outputs.get(INDICES_NAME)
    found = list(outputs.values())
    return (found[0], found[1]) if len(found) == 2 else (None, None)


def _short(text: str) -> str:
    plain = one_line(re.sub(r"\s+", " ", text)).replace("|", "/")
    # what differs from file to file, and folders of this machine
    for part in (r"/\S*/(?=\w)", r":\d+:\d+", r" with name '[^']*'", r"; node .*", r" Name:.*"):
        plain = re.sub(part, "", plain)
    return plain if len(plain) <= _REASON_CHARS else plain[: _REASON_CHARS - 1] + "…"


# -- the first layer that differs ------------------------------------------------------------------


def locate(
    runtime: Runtime, home: Path, path: Path, inputs: Path, work: Path, tolerance: float
) -> str | None:
    """The first tensor of the file that the runtime computes otherwise than onnxruntime.

    tolerance: relative L2, of one picture. Each trial adds one tensor to the outputs, so that a
    fused kernel elsewhere stays as it is.
    """
    import onnx
    import onnxruntime

    from t2t_deploy.graph import expose_tensors

    model = read_onnx(path, external_data=True)
    kinds = {info.name: info.type.tensor_type.elem_type for info in model.graph.value_info}
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}
    names = [
        (node.output[0], node.op_type)
        for node in model.graph.node
        if kinds.get(node.output[0]) in floats
    ]
    fed = np.load(inputs)["image"]
    trial = work / f"exposed-{os.getpid()}.onnx"

    def differs(index: int) -> bool:
        name = names[index][0]
        onnx.save(expose_tensors(model, [name]), trial)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(trial, options)
        expected = session.run([name], {session.get_inputs()[0].name: fed[:1]})[0]
        found = run(runtime, home, trial, inputs, work / f"out-{os.getpid()}")
        outputs = found.get("outputs", {}).get("1")
        if outputs is None:
            return True
        actual = outputs.get(name, list(outputs.values())[-1])[:1]
        if actual.size != expected.size:
            return True
        a, b = actual.ravel().astype(np.float64), expected.ravel().astype(np.float64)
        error = float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(b)), 1e-30)
        return not error <= tolerance

    low, high = 0, len(names)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if differs(middle) else (middle + 1, high)
    return None if low == len(names) else f"{names[low][0]} ({names[low][1]})"


# -- the table -------------------------------------------------------------------------------------


def table(results: Mapping[str, Any], model: str, notes: list[str]) -> str:
    """Rows of all runtimes for one model, in Markdown."""
    files = [file for file in FILES if file.model == model]
    lines = [f"| {model} | {' | '.join(file.kind.name for file in files)} |"]
    lines.append("|---" * (len(files) + 1) + "|")
    for runtime in RUNTIMES:
        found = results.get(runtime.title)
        if found is None:
            continue
        cells = (found["cells"].get(file.column) for file in files)
        words = ("not run" if cell is None else Cell(**cell).text(notes) for cell in cells)
        version = f" {found['version']}" if found["version"] else ""
        name = runtime.name if version.strip() in runtime.name else runtime.name + version
        name += f", {runtime.option}" if runtime.option else ""
        lines.append(f"| {name} | {' | '.join(words)} |")
    return "\n".join(lines)


def unexplained(results: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """A line for each cell that is wrong, and whose file `inspect --runtime` calls right."""
    for runtime in RUNTIMES:
        cells = results.get(runtime.title, {}).get("cells", {})
        for file in runtime.files if runtime.known else ():
            cell = Cell(**cells[file.column]) if file.column in cells else None
            if cell is None or cell.right or cell.unasked:
                continue
            model = read_onnx(folder / f"{file.stem}.onnx", external_data=False)
            if not check_conformance(model, runtime.known).faults:
                yield f"{runtime.title}: {file.stem}: {cell.text()}; inspect knows no fault"


def _tell(text: str) -> None:
    click.echo(text, err=True)


@click.command(context_settings={"show_default": True})
@click.option("--only", multiple=True, help="Runtimes with this in their name; may be repeated.")
@click.option("--files", "words", multiple=True, help="Files with this in their name.")
@click.option("--locate", "locating", is_flag=True, help="Find the first tensor that differs.")
@click.option("--folder", type=click.Path(path_type=Path), default="build/runtimes")
@click.option("--record", type=click.Path(path_type=Path), help="Default results.json there.")
@click.option("--environments", type=click.Path(path_type=Path), default=".venv-runtimes")
@click.option("--table", "table_only", is_flag=True, help="Print what the last runs found.")
def main(
    only: Sequence[str],
    words: Sequence[str],
    locating: bool,
    folder: Path,
    record: Path | None,
    environments: Path,
    table_only: bool,
) -> None:
    """Run our files in other runtimes, and print the table."""
    folder.mkdir(parents=True, exist_ok=True)
    record = record or folder / "results.json"
    results: dict[str, Any] = json.loads(record.read_text()) if record.is_file() else {}
    if not table_only:
        chosen = [one for one in RUNTIMES if not only or any(word in one.title for word in only)]
        make_files(folder, files_of(chosen))
        for runtime in chosen:
            _run_all(runtime, folder.absolute(), environments.absolute(), words, locating, results)
            write_text(record, json.dumps(results, indent=1))
    notes: list[str] = []
    for model in (*SMALL, *LARGE):
        click.echo(f"{table(results, model, notes)}\n")
    for number, note in enumerate(notes, 1):
        click.echo(f"{number}. {note}")
    if wrong := list(unexplained(results, folder)):
        raise click.ClickException("\n".join(wrong))


def _run_all(
    runtime: Runtime,
    folder: Path,
    environments: Path,
    words: Sequence[str],
    locating: bool,
    results: dict[str, Any],
) -> None:
    own = results.setdefault(runtime.title, {"version": None, "cells": {}})
    chosen = [one for one in runtime.files if not words or any(word in one.stem for word in words)]
    try:
        if runtime.needs is not None and shutil.which(runtime.needs) is None:
            raise DeployError(f"not run: {runtime.needs} is not here")
        home = environment(runtime, environments)
    except DeployError as err:
        for file in chosen:
            own["cells"][file.column] = dataclasses.asdict(Cell({}, {"load": _short(str(err))}, 0))
        return
    for file in chosen:
        path, inputs = (folder / f"{file.stem}.{ending}" for ending in ("onnx", "npz"))
        about = json.loads((folder / f"{file.stem}.json").read_text())
        if "refused" in about:
            cell = Cell({}, {"load": _short(f"{_UNASKED}: {about['refused']}")}, 0)
        elif runtime.takes == "torch" and not (folder / f"{file.stem}-1.pt2").is_file():
            why = f"{_UNASKED}: the module has no such form"
            cell = Cell({}, {"load": why}, about["tolerance"])
        else:
            found = run(runtime, home, path, inputs, folder / f"out-{os.getpid()}")
            own["version"] = found.get("version") or own["version"]
            with np.load(inputs) as arrays:
                cell = judge(found, dict(arrays), about)
            if locating and cell.error and not cell.right and runtime.takes == "onnx":
                # inside a graph, rounding shows more than in the logits
                first = locate(runtime, home, path, inputs, folder, 10 * about["tolerance"])
                cell = dataclasses.replace(cell, first=first)
        own["cells"][file.column] = dataclasses.asdict(cell)
        _tell(f"{runtime.title}: {file.stem}: {cell.text()}")


if __name__ == "__main__":
    main()
