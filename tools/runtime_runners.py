"""One file in one runtime: run by `runtimes.py` in the runtime's environment, without ours.

    python runtime_runners.py RUNNER FILE.onnx FOLDER

Runs three pictures one by one, then all at once, and writes each output, and answer.json.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np

Call = Callable[[np.ndarray], Mapping[str, np.ndarray]]
BATCHES = (1, 3)


def reference(path: Path, batch: int) -> tuple[str, Call]:
    """The onnx package's own, operator by operator in numpy."""
    from onnx.reference import ReferenceEvaluator

    session = ReferenceEvaluator(str(path))
    taken = session.input_names[0]
    return version("onnx"), lambda x: dict(
        zip(session.output_names, session.run(None, {taken: x}), strict=True)
    )


def onnxruntime(path: Path, batch: int) -> tuple[str, Call]:
    """Native, on the CPU."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    taken = session.get_inputs()[0].name
    return ort.__version__, lambda x: dict(zip(names, session.run(None, {taken: x}), strict=True))


def openvino(path: Path, batch: int) -> tuple[str, Call]:
    """On the CPU, in the precision that the plugin takes by itself."""
    return _openvino(path, {})


def openvino_f32(path: Path, batch: int) -> tuple[str, Call]:
    """With the hint to compute in float32."""
    return _openvino(path, {"INFERENCE_PRECISION_HINT": "f32"})


def _openvino(path: Path, options: dict[str, str]) -> tuple[str, Call]:
    import openvino as ov

    core = ov.Core()
    compiled = core.compile_model(
        core.read_model(path), "CPU", {"INFERENCE_NUM_THREADS": "1", **options}
    )

    def call(x: np.ndarray) -> dict[str, np.ndarray]:
        found = compiled([x])
        return {one.get_any_name(): np.array(found[one]) for one in compiled.outputs}

    return version("openvino"), call


def openvino_ep(path: Path, batch: int) -> tuple[str, Call]:
    """ONNX Runtime with OpenVINO's plug-in, all nodes in it where it takes them."""
    return _openvino_ep(path, {})


def openvino_ep_f32(path: Path, batch: int) -> tuple[str, Call]:
    """The same, with OpenVINO's hint to compute in float32."""
    hint = {"CPU": {"INFERENCE_PRECISION_HINT": "f32"}}
    return _openvino_ep(path, {"load_config": json.dumps(hint)})


def _openvino_ep(path: Path, settings: dict[str, str]) -> tuple[str, Call]:
    import onnxruntime as ort
    import onnxruntime_ep_openvino as plugin

    def offered() -> list[Any]:
        return [one for one in ort.get_ep_devices() if one.ep_name == plugin.get_ep_name()]

    if not offered():
        ort.register_execution_provider_library("openvino", plugin.get_library_path())
    if not (devices := offered()):
        raise NotSupported("not applicable: the plug-in offers no device on this processor")
    _, call = _with_provider(path, devices, settings)
    return version("onnxruntime-ep-openvino"), call


def ggml_ep(path: Path, batch: int) -> tuple[str, Call]:
    """ONNX Runtime with ggml's kernels for the CPU."""
    import onnxruntime_ggml as plugin

    _, call = _with_provider(path, plugin.devices(), {"device": "cpu", "threads": "1"})
    return plugin.version(), call


def _with_provider(path: Path, devices: list[Any], settings: dict[str, str]) -> tuple[str, Call]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_provider_for_devices(devices, settings)
    session = ort.InferenceSession(path, options)
    names, taken = [one.name for one in session.get_outputs()], session.get_inputs()[0].name
    return ort.__version__, lambda x: dict(zip(names, session.run(None, {taken: x}), strict=True))


def onnxruntime_openvino(path: Path, batch: int) -> tuple[str, Call]:
    """ONNX Runtime built with OpenVINO's provider, on the CPU."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    provider = ("OpenVINOExecutionProvider", {"device_type": "CPU", "num_of_threads": "1"})
    session = ort.InferenceSession(path, options, providers=[provider])
    names, taken = [one.name for one in session.get_outputs()], session.get_inputs()[0].name
    return ort.__version__, lambda x: dict(zip(names, session.run(None, {taken: x}), strict=True))


def nxrt(path: Path, batch: int) -> tuple[str, Call]:
    """nxrt, written in Rust."""
    import nxrt as rt

    session = rt.InferenceSession(str(path))
    names, taken = [one.name for one in session.get_outputs()], session.get_inputs()[0].name
    return rt.__version__, lambda x: dict(zip(names, session.run(None, {taken: x}), strict=True))


def tract(path: Path, batch: int) -> tuple[str, Call]:
    """tract, with the free batch as a symbol."""
    import tract as rt

    # it names outputs by their nodes, so that those of a TopK have one name
    names, model = _ends(path)[1], rt.onnx().load(str(path)).into_model().into_runnable()
    return rt.version(), lambda x: {
        name: one.to_numpy() for name, one in zip(names, model.run([x]), strict=True)
    }


def opencv(path: Path, batch: int) -> tuple[str, Call]:
    """OpenCV's dnn."""
    import cv2

    net = cv2.dnn.readNetFromONNX(str(path))
    names = list(net.getUnconnectedOutLayersNames())

    def call(x: np.ndarray) -> dict[str, np.ndarray]:
        net.setInput(x)
        return dict(zip(names, net.forward(names), strict=True))

    return cv2.__version__, call


def mnn(path: Path, batch: int) -> tuple[str, Call]:
    """MNN, by its converter and its module."""
    import MNN
    from MNN import expr, nn

    inputs, outputs = _ends(path)
    made = Path(f"{batch}.mnn").absolute()
    command = [str(Path(sys.executable).parent / "mnnconvert"), "-f", "ONNX", "--bizCode", "none"]
    _tool([*command, "--modelFile", str(path), "--MNNModel", str(made)], made)
    module = nn.load_module_from_file(str(made), inputs, outputs)
    kinds = {"float32": expr.float, "uint8": expr.uint8}

    def call(x: np.ndarray) -> dict[str, np.ndarray]:
        fed = expr.const(x.copy(), list(x.shape), expr.NCHW, kinds[str(x.dtype)])
        return {
            name: np.array(one.read())
            for name, one in zip(outputs, module.forward([fed]), strict=True)
        }

    return str(MNN.version()), call


def tinygrad(path: Path, batch: int) -> tuple[str, Call]:
    """tinygrad, on the CPU through clang."""
    from tinygrad import Tensor
    from tinygrad.nn.onnx import OnnxRunner

    model = OnnxRunner(str(path))
    (taken,) = model.graph_inputs

    def call(x: np.ndarray) -> dict[str, np.ndarray]:
        return {name: one.numpy() for name, one in model({taken: Tensor(x)}).items()}

    return version("tinygrad"), call


def iree(path: Path, batch: int) -> tuple[str, Call]:
    """IREE, compiled for this processor."""
    import iree.runtime as rt

    tools, _, outputs = Path(sys.executable).parent, *_ends(path)
    text, made = Path("model.mlir").absolute(), Path("model.vmfb").absolute()
    if not made.is_file():
        _tool([str(tools / "iree-import-onnx"), str(path), "-o", str(text)], text)
        command = [str(tools / "iree-compile"), str(text), "-o", str(made)]
        command += ["--iree-hal-target-device=local", "--iree-llvmcpu-target-cpu=host"]
        _tool([*command, "--iree-hal-local-target-device-backends=llvm-cpu"], made)
    module = rt.load_vm_flatbuffer_file(str(made), driver="local-sync")
    (name,) = (n for n in module.vm_module.function_names if "$" not in n and n[:2] != "__")

    def call(x: np.ndarray) -> dict[str, np.ndarray]:
        found = module[name](x)
        found = found if isinstance(found, (list, tuple)) else [found]
        return {one: np.asarray(value) for one, value in zip(outputs, found, strict=True)}

    return version("iree-base-compiler"), call


def tvm(path: Path, batch: int) -> tuple[str, Call]:
    """TVM's Relax, compiled for one batch."""
    import onnx
    import tvm as rt
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    model = onnx.load(path)
    (taken,), outputs = _ends(path)
    sides = model.graph.input[0].type.tensor_type.shape.dim[1:]
    shape = [batch, *(side.dim_value for side in sides)]
    module = from_onnx(model, shape_dict={taken: shape}, keep_params_in_input=False)
    machine = relax.VirtualMachine(rt.compile(module, target="llvm"), rt.cpu())

    def call(x: np.ndarray) -> dict[str, np.ndarray]:
        found = machine["main"](rt.runtime.tensor(np.ascontiguousarray(x)))
        found = [found] if hasattr(found, "numpy") else list(found)
        return {name: one.numpy() for name, one in zip(outputs, found, strict=True)}

    return rt.__version__, call


def ncnn(path: Path, batch: int) -> tuple[str, Call]:
    """ncnn in float32, of what pnnx makes of the file at that batch."""
    import ncnn as rt

    if batch > 1:
        raise NotSupported("not applicable: ncnn takes one picture at a time")
    _, outputs = _ends(path)
    folder = Path(f"pnnx-{batch}").absolute()
    folder.mkdir(exist_ok=True)
    copy = folder / "model.onnx"
    copy.write_bytes(path.read_bytes())
    sides = _sides(path)
    shape = f"inputshape=[{','.join(map(str, (batch, *sides)))}]{_PNNX_KINDS[_input_kind(path)]}"
    command = [str(Path(sys.executable).parent / "pnnx"), str(copy), shape, "fp16=0"]
    log = _tool(command, folder / "model.ncnn.param")
    net = rt.Net()
    net.opt.num_threads = 1
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    wrong = net.load_param(str(folder / "model.ncnn.param"))
    wrong = wrong or net.load_model(str(folder / "model.ncnn.bin"))
    if wrong:
        unknown = sorted({line.split()[1] for line in log.splitlines() if line[:4] == "todo"})
        left_out = f"; pnnx leaves out {', '.join(unknown)}" if unknown else ""
        raise NotSupported(f"ncnn refuses what pnnx wrote{left_out}")

    def call(x: np.ndarray) -> dict[str, np.ndarray]:
        found = {}
        extractor = net.create_extractor()
        extractor.input("in0", rt.Mat(np.ascontiguousarray(x[0] if batch == 1 else x)).clone())
        for index, name in enumerate(outputs):
            status, value = extractor.extract(f"out{index}")
            if status:
                raise RuntimeError(f"extract gives {status}")
            rows = np.array(value)
            found[name] = rows[None] if batch == 1 else rows
        return found

    return version("ncnn"), call


_PNNX_KINDS = {"float32": "f32", "uint8": "u8"}


_ONNX2TF_PICTURES = "calibration_image_sample_data_20x128x128x3_float32.npy"


def onnx2tf(path: Path, batch: int) -> tuple[str, Call]:
    """LiteRT, of what onnx2tf makes of the file at that batch."""
    from ai_edge_litert.interpreter import Interpreter

    outputs, folder = _ends(path)[1], Path(f"onnx2tf-{batch}").absolute()
    folder.mkdir(exist_ok=True)
    copy, made = folder / "model.onnx", folder / "model_float32.tflite"
    copy.write_bytes(path.read_bytes())  # it writes over the file that it is given
    # pictures for a check of its own, which it would download
    np.save(_ONNX2TF_PICTURES, np.random.default_rng(0).random((20, 128, 128, 3), np.float32))
    command = [str(Path(sys.executable).parent / "onnx2tf"), "-i", str(copy), "-o", str(folder)]
    # LiteRT alone has no Erf
    _tool([*command, "-b", str(batch), "-n", "-rtpo", "Erf"], made)
    session = Interpreter(str(made), num_threads=1)
    session.allocate_tensors()
    (taken,), found = session.get_input_details(), session.get_output_details()
    last = list(taken["shape"]) != [batch, *_sides(path)]  # channels

    def call(x: np.ndarray) -> dict[str, np.ndarray]:
        session.set_tensor(taken["index"], x.transpose(0, 2, 3, 1) if last else x)
        session.invoke()
        return {
            name: session.get_tensor(one["index"]) for name, one in zip(outputs, found, strict=True)
        }

    return version("onnx2tf"), call


def litert_torch(path: Path, batch: int) -> tuple[str, Call]:
    """LiteRT, of what litert-torch makes of the module at that batch."""
    import litert_torch as converter
    import torch

    module = torch.export.load(path.with_name(f"{path.stem}-{batch}.pt2")).module()
    model = converter.convert(module, (torch.zeros(batch, *_sides(path)),))
    (name,) = _ends(path)[1]
    return version("litert-torch"), lambda x: {name: np.asarray(model(np.ascontiguousarray(x)))}


def executorch(path: Path, batch: int) -> tuple[str, Call]:
    """ExecuTorch with XNNPACK, of the module at that batch."""
    return _executorch(path, batch, {})


def executorch_norms(path: Path, batch: int) -> tuple[str, Call]:
    """The same with each LayerNorm written out, float32 inside."""
    import torch

    def layer_norm(
        x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, _: bool = True
    ) -> Any:
        assert len(shape) == 1
        centred = x.float() - x.float().mean(-1, keepdim=True)
        y = centred * torch.rsqrt((centred * centred).mean(-1, keepdim=True) + eps)
        y = y if weight is None else y * weight.float()
        return (y if bias is None else y + bias.float()).to(x.dtype)

    return _executorch(path, batch, {torch.ops.aten.layer_norm.default: layer_norm})


def _executorch(path: Path, batch: int, written_out: dict[Any, Any]) -> tuple[str, Call]:
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    exported = torch.export.load(path.with_name(f"{path.stem}-{batch}.pt2"))
    if written_out:
        exported = exported.run_decompositions(
            {**torch.export.default_decompositions(), **written_out}
        )
    edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    program = Runtime.get().load_program(edge.to_executorch().buffer)
    method, (name,) = program.load_method("forward"), _ends(path)[1]

    def call(x: np.ndarray) -> dict[str, np.ndarray]:
        kept = program  # the method reads its memory
        (found,) = method.execute([torch.from_numpy(x.copy())])
        assert kept is not None
        return {name: found.float().numpy().copy()}

    return version("executorch"), call


def onnx2torch(path: Path, batch: int) -> tuple[str, Call]:
    """PyTorch, of what onnx2torch makes of the file."""
    import torch

    # only RoiAlign and NonMaxSuppression use it, and it loads with no other build of torch
    sys.modules["torchvision"] = sys.modules["torchvision.ops"] = MagicMock()
    from onnx2torch import convert

    model, outputs = convert(str(path)), _ends(path)[1]

    def call(x: np.ndarray) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            found = model(torch.from_numpy(x.copy()))
        found = found if isinstance(found, (list, tuple)) else [found]
        return {name: one.numpy() for name, one in zip(outputs, found, strict=True)}

    return version("onnx2torch"), call


class NotSupported(Exception):
    """A reason that stands for itself."""


def _tool(command: list[str], made: Path) -> str:
    """Run a converter; raise with its last words where it makes no file."""
    done = subprocess.run(command, capture_output=True, text=True)
    log = done.stdout + done.stderr
    if done.returncode or not made.is_file():
        words = [
            line
            for line in log.splitlines()
            if re.search("error|fail|not support|unsup", line, re.I) and "trace log" not in line
        ]
        words = words or log.strip().splitlines()[-1:] or ["no output"]
        raise NotSupported(f"{Path(command[0]).name} ends with {done.returncode}: {words[0]}")
    return log


def _about(path: Path) -> dict[str, Any]:
    """Names and types of the ends, which runtimes.py wrote beside the inputs."""
    about: dict[str, Any] = json.loads(Path("ends.json").read_text())
    return about


def _ends(path: Path) -> tuple[list[str], list[str]]:
    about = _about(path)
    return about["inputs"], about["outputs"]


def _sides(path: Path) -> list[int]:
    sides: list[int] = _about(path)["sides"]
    return sides


def _input_kind(path: Path) -> str:
    return str(_about(path)["kind"])


def main() -> None:
    """As the module says."""
    runner, path, out = sys.argv[1], *map(Path, sys.argv[2:4])
    ends = json.loads(Path("ends.json").read_text())
    fed = np.fromfile("input.bin", ends["kind"]).reshape(-1, *ends["sides"])
    answer: dict[str, Any] = {"version": None, "names": {}, "reasons": {}}
    for batch in BATCHES:
        try:
            answer["version"], call = globals()[runner](path, batch)
        except Exception as err:
            answer["reasons"]["load" if batch == 1 else str(batch)] = _line(err)
            break
        try:
            parts = [call(fed[start : start + batch]) for start in range(0, len(fed), batch)]
            names = list(parts[0])
            answer["names"][str(batch)] = names
            for index, name in enumerate(names):
                rows = np.concatenate([np.asarray(part[name]) for part in parts])
                if rows.dtype.kind not in "iu":
                    rows = rows.astype(np.float32)
                np.save(out / f"{batch}-{index}.npy", rows)
        except Exception as err:
            answer["reasons"][str(batch)] = _line(err)
    (out / "answer.json").write_text(json.dumps(answer))


def _line(err: Exception) -> str:
    text = " ".join(str(err).strip().splitlines())[:400]
    return text if isinstance(err, NotSupported) else f"{type(err).__name__}: {text}"


if __name__ == "__main__":
    main()
