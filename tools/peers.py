"""What one would use instead on an x86 CPU: how each peer is made, and how it is opened.

`bench_peers.py` runs this file as the processes that make peers and that time them.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from t2t_deploy._child import Child, ChildError, Parent, child_environment
from t2t_deploy._codec import from_plain
from t2t_deploy._files import write_text
from t2t_deploy._optional import installed_versions, require
from t2t_deploy.bench._worker import gives_logits, serve_bench
from t2t_deploy.errors import one_line
from t2t_deploy.runtime import Session, SessionRequest, open_session
from t2t_deploy.types import INPUT_NAME, OUTPUT_NAME, Precision, TensorSpec

CALIBRATION, HELD_OUT, LOGITS = "calibration.npy", "held-out.npy", "logits.npy"
PICTURES = {CALIBRATION: 64, HELD_OUT: 32}
"""How many crops of photographs; those of the two kinds are of different ones."""
EAGER = "eager, float32"
_F32, _BF16, _INT8 = Precision.FP32, Precision.BF16, Precision.INT8
_REASON_CHARS = 200
_MAKERS = ("torch", "torchao", "onnx", "onnxscript", "onnxruntime", "openvino", "nncf")
Call = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class Peer:
    """One thing to compare with.

    runtime: of `OPENERS`, else a backend of ours. precision: of autocast, or OpenVINO's hint.
    recipe: of `RECIPES`; None runs the weights. packages: what it needs, whose versions it has.
    """

    name: str
    runtime: str
    precision: Precision
    recipe: str | None
    packages: tuple[str, ...]


_OV, _ORT = ("openvino",), ("onnxruntime",)
PEERS = (
    Peer(EAGER, "eager", _F32, None, ("torch",)),
    Peer("eager, bf16 autocast", "eager", _BF16, None, ("torch",)),
    Peer("torch.compile, float32", "compile", _F32, None, ("torch",)),
    Peer("torch.compile, bf16 autocast", "compile", _BF16, None, ("torch",)),
    Peer("PT2E int8, torch.compile", "pt2e", _F32, "pt2e", ("torch", "torchao")),
    Peer("PT2E int8, bf16 autocast", "pt2e", _BF16, "pt2e", ("torch", "torchao")),
    Peer("zentorch, float32", "zentorch", _F32, None, ("torch", "zentorch")),
    Peer("zentorch, bf16 autocast", "zentorch", _BF16, None, ("torch", "zentorch")),
    Peer("plain export, ONNX Runtime", "onnxruntime", _F32, "plain", _ORT),
    Peer("plain export, OpenVINO, f32", "openvino-ir", _F32, "plain", _OV),
    Peer("plain export, OpenVINO, bf16", "openvino-ir", _BF16, "plain", _OV),
    Peer("nncf int8, defaults, f32", "openvino-ir", _F32, "nncf", (*_OV, "nncf")),
    Peer("nncf int8, defaults, bf16", "openvino-ir", _BF16, "nncf", (*_OV, "nncf")),
    Peer("nncf int8, TRANSFORMER, f32", "openvino-ir", _F32, "nncf-transformer", (*_OV, "nncf")),
    Peer("nncf int8, TRANSFORMER, bf16", "openvino-ir", _BF16, "nncf-transformer", (*_OV, "nncf")),
    *(
        Peer(f"ONNX Runtime's {name}", "onnxruntime", _INT8, recipe, _ORT)
        for name, recipe in (
            ("quantize_dynamic", "dynamic"),
            ("quantize_dynamic, per channel", "dynamic-channels"),
            ("quantize_static", "static"),
            ("quantize_static, u8 x s8 per channel", "static-channels"),
            ("quantize_static, symmetric per channel", "static-symmetric"),
        )
    ),
)


@dataclass(frozen=True, slots=True)
class Work:
    """What peers of one batch are made of, and the folder of all of one model.

    plain: the plain export, once it is made; it has the batch fixed.
    """

    weights: Path
    config: Mapping[str, Any]
    folder: Path
    batch: int = 1
    plain: Path | None = None

    def batches(self) -> list[np.ndarray]:
        """The calibration crops, (batch, C, H, W) float32 each."""
        crops = np.load(self.folder / CALIBRATION)
        count = max(len(crops) // self.batch, 1) * self.batch
        return np.split(np.resize(crops, (count, *crops.shape[1:])), count // self.batch)

    def reference(self) -> Any:
        """The reference in eager PyTorch."""
        from t2t_deploy.model import config_from_dict, load_reference

        return load_reference(self.weights, config_from_dict(self.config))


# -- how peers are made, in a process of their own -------------------------------------------------


def _plain(work: Work, path: Path, *, dynamo: bool = True) -> None:
    from t2t_deploy.commands._baselines import plain_export

    plain_export(work.reference(), path / "model.onnx", batch=work.batch, dynamo=dynamo)


def _nncf(work: Work, path: Path, *, transformer: bool = False) -> None:
    ov = require("openvino")  # before nncf: without the telemetry of both
    import nncf

    quantized = nncf.quantize(
        ov.Core().read_model(work.plain),
        nncf.Dataset(work.batches()),
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
    )
    ov.save_model(quantized, path / "model.xml", compress_to_fp16=False)


def _onnxruntime(work: Work, path: Path, *, static: bool, **options: Any) -> None:
    require("onnxruntime")
    from onnxruntime import quantization as ort

    prepared, model = path / "prepared.onnx", path / "model.onnx"
    try:
        ort.shape_inference.quant_pre_process(work.plain, prepared)
    except AssertionError:  # its symbolic inference does not know all that TorchScript writes
        ort.shape_inference.quant_pre_process(work.plain, prepared, skip_symbolic_shape=True)
    kinds = {name: ort.QuantType[kind] for name, kind in options.pop("types", {}).items()}
    if static:
        batches = ({INPUT_NAME: batch} for batch in work.batches())
        reader = SimpleNamespace(get_next=lambda: next(batches, None))
        ort.quantize_static(prepared, model, reader, **kinds, **options)
    else:
        ort.quantize_dynamic(prepared, model, weight_type=ort.QuantType.QInt8, **options)
    prepared.unlink()


def _pt2e(work: Work, path: Path) -> None:
    import torch
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    batches = [torch.from_numpy(batch) for batch in work.batches()]
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    with torch.no_grad():
        exported = torch.export.export(work.reference(), (batches[0],)).module()
        prepared = prepare_pt2e(exported, quantizer)
        for batch in batches:
            prepared(batch)
        converted = move_exported_model_to_eval(convert_pt2e(prepared))
        torch.export.save(torch.export.export(converted, (batches[0],)), path / "model.pt2")


_U8_S8 = {"activation_type": "QUInt8", "weight_type": "QInt8"}
_SYMMETRIC = {"ActivationSymmetric": True, "WeightSymmetric": True}
RECIPES: Mapping[str, Callable[[Work, Path], None]] = {
    "plain": _plain,
    "plain-torchscript": functools.partial(_plain, dynamo=False),
    "nncf": _nncf,
    "nncf-transformer": functools.partial(_nncf, transformer=True),
    "dynamic": functools.partial(_onnxruntime, static=False),
    "dynamic-channels": functools.partial(_onnxruntime, static=False, per_channel=True),
    "static": functools.partial(_onnxruntime, static=True),
    # as its documentation says for processors with VNNI
    "static-channels": functools.partial(_onnxruntime, static=True, per_channel=True, types=_U8_S8),
    "static-symmetric": functools.partial(
        _onnxruntime, static=True, per_channel=True, extra_options=_SYMMETRIC
    ),
    "pt2e": _pt2e,
}


def made(recipe: str, work: Work, tell: Callable[[str], None]) -> Path:
    """The file of a recipe, made in a process of its own unless it is there.

    Raises ChildError with the reason, one line.
    """
    folder = work.folder / f"batch-{work.batch}" / recipe
    versions = installed_versions(*_MAKERS)
    key = {"weights": work.weights.stem, "pictures": PICTURES, "versions": versions}
    record = folder / "made.json"
    if not record.is_file() or json.loads(record.read_text()) != key:
        tell(f"making {recipe}, batch {work.batch}")
        folder.mkdir(parents=True, exist_ok=True)
        record.unlink(missing_ok=True)
        with Child((sys.executable, __file__, "make"), child_environment(), "maker") as child:
            child.send({"recipe": recipe, "work": work, "folder": folder})
            answer = child.next_message().values
        if not answer["ok"]:
            raise ChildError(answer["reason"])
        write_text(record, json.dumps(key))
    # weights lie beside some
    return next(one for one in folder.glob("model.*") if one.suffix in (".onnx", ".xml", ".pt2"))


def serve_make() -> None:
    """Make the one peer that the parent asks for."""
    parent = Parent()
    message = parent.next_message()
    try:
        work = from_plain(Work, message["work"])
        RECIPES[message["recipe"]](work, Path(message["folder"]))
        parent.send({"ok": True})
    except Exception as err:  # whatever it is, a peer that fails is a row
        parent.send(
            {"ok": False, "reason": f"not made: {type(err).__name__}: {one_line(str(err))}"}
        )


# -- how peers are opened, in the worker that times them -------------------------------------------


def _open_onnxruntime(request: SessionRequest) -> Call:
    ort = require("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = request.threads
    options.log_severity_level = 3
    session = ort.InferenceSession(request.path, options, providers=["CPUExecutionProvider"])
    return lambda pictures: session.run(None, {INPUT_NAME: pictures})[0]


def _open_openvino(request: SessionRequest) -> Call:
    core = require("openvino").Core()
    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if request.precision is _BF16 else "f32",
        "INFERENCE_NUM_THREADS": str(request.threads),
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
    }
    compiled = core.compile_model(core.read_model(request.path), "CPU", options)
    infer = compiled.create_infer_request()
    return lambda pictures: infer.infer([pictures], share_inputs=True)[0]


def _open_torch(request: SessionRequest) -> Call:
    import torch

    torch.set_num_threads(request.threads or 1)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(request.cache)
    if request.backend == "zentorch":
        import zentorch  # noqa: F401  # registers its compiler

        reference = Work(request.path, request.config or {}, Path()).reference()
        model: Any = torch.compile(reference, backend="zentorch")
    else:
        # registers the patterns that Inductor fuses
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer  # noqa: F401

        model = torch.compile(torch.export.load(request.path).module())
    half = request.precision is _BF16

    def call(pictures: np.ndarray) -> np.ndarray:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            found: np.ndarray = model(torch.from_numpy(pictures)).float().numpy()
        return found

    return call


OPENERS: Mapping[str, Callable[[SessionRequest], Call]] = {
    "onnxruntime": _open_onnxruntime,
    "openvino-ir": _open_openvino,
    "pt2e": _open_torch,
    "zentorch": _open_torch,
}


class PeerSession(Session):
    """A peer as its documentation opens it, at one batch."""

    def __init__(self, request: SessionRequest) -> None:
        from t2t_deploy.model import config_from_dict

        config = config_from_dict(request.config or {})
        self.backend = request.backend
        self._call: Call | None = OPENERS[request.backend](request)
        self.inputs = (TensorSpec(INPUT_NAME, "float32", (request.batch, *config.input_shape)),)
        (output,) = config.output_shapes.values()
        self.outputs = (TensorSpec(OUTPUT_NAME, "float32", (request.batch, *output)),)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As `Session.run`, unchecked."""
        assert self._call is not None
        return {OUTPUT_NAME: self._call(feeds[INPUT_NAME])}

    def close(self) -> None:
        """As `Session.close`."""
        self._call = None


def open_timed(request: SessionRequest) -> Session:
    """A peer's session, or one of ours; its logits of the held-out crops go into the cache."""
    session = PeerSession(request) if request.backend in OPENERS else open_session(request)
    if gives_logits(session) and request.cache and request.batch:
        crops = np.load(request.cache.parents[1] / HELD_OUT)
        np.save(request.cache / LOGITS, _logits(session, crops, request.batch))
    return session


def _logits(session: Session, pictures: np.ndarray, batch: int) -> np.ndarray:
    taken, found = session.inputs[0].name, []
    for start in range(0, len(pictures), batch):
        chunk = np.resize(pictures[start : start + batch], (batch, *pictures.shape[1:]))
        found.append(next(iter(session.run({taken: chunk}).values())))
    return np.concatenate(found)[: len(pictures)]


if __name__ == "__main__":
    # what Inductor's 8-bit recipe for x86 needs, and its float graphs gain from
    os.environ.setdefault("TORCHINDUCTOR_FREEZING", "1")
    if sys.argv[1:] == ["make"]:
        serve_make()
    else:
        serve_bench(open_timed)
