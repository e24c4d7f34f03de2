#!/usr/bin/env bash
# TensorRT-RTX: a bias is what keeps an INT8 linear layer from writing INT8.
#
# Guess: an INT8 GEMM with a bias, followed by QuantizeLinear, is the textbook case: bias and
# rounding to INT8 happen inside the GEMM, as the float16 GEMM does with bias and GELU.
# Seen: without a bias the GEMM writes Int8. With one (MatMul + Add, or Gemm with its third input)
# it writes Half and a second kernel adds the bias and quantises: five bytes are moved where one
# would do. A float16 Gemm takes bias and GELU inside. Quantising *before* the bias as
# well lets the GEMM write Int8 again: still a second kernel, but 0.45 MB less here.
# Why it matters: every linear layer of a vision transformer has a bias. This INT8 MLP
# moves 1.4 times the bytes of the float16 one, so that a faster engine is not a given.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  tensorrt-rtx-cu13-libs==1.7.1.116 tensorrt-rtx-cu13-bindings==1.7.1.116 \
  onnx==1.23.2 numpy==2.4.6 ml_dtypes==0.6.0
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import re
import ml_dtypes, numpy as np, onnx, tensorrt_rtx_bindings as trt
from onnx import TensorProto, helper, numpy_helper

F16, I8, F8 = np.float16, np.int8, ml_dtypes.float8_e4m3fn

class Graph:
    def __init__(self):
        self.nodes, self.consts, self.rng = [], [], np.random.default_rng(0)
    def const(self, value):
        self.consts.append(numpy_helper.from_array(np.asarray(value), f"c{len(self.consts)}"))
        return self.consts[-1].name
    def op(self, kind, *inputs, name=None, **attributes):
        name = name or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name
    def qdq(self, x, scale, code=I8):
        s, zero = self.const(F16(scale)), self.const(np.zeros((), code))
        return self.op("DequantizeLinear", self.op("QuantizeLinear", x, s, zero), s, zero)
    def weights(self, shape, scale, code=I8, **axis):
        random = self.rng.integers(-127, 128, shape) if code is I8 else self.rng.normal(size=shape)
        tensors = random.astype(code), np.asarray(scale, F16), np.zeros(np.shape(scale), code)
        return self.op("DequantizeLinear", *map(self.const, tensors), **axis)
    def vector(self, n):
        return self.const((1 + 0.1 * self.rng.normal(size=n)).astype(F16))
    def model(self, y, *shapes):
        self.op("Identity", y, name="y")
        ends = [[helper.make_tensor_value_info(n, TensorProto.FLOAT16, s)] for n, s in zip("xy", shapes)]
        graph, opset = helper.make_graph(self.nodes, "g", *ends, self.consts), helper.make_opsetid("", 20)
        return helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()

class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.lines = []
    def log(self, severity, message):
        self.lines += message.split("\n")

LINE = re.compile(r"Name: (.*), LayerType: .*?Inputs: (.*), Constants: (.*), Outputs: (.*), Tactic")
TENSOR = re.compile(r"Dimensions: \[([-\d,]*)\].*?Datatype: (\w+)")

def build(model, target):
    """The engine's bytes, and per kernel: name, inputs, constants, outputs as (type, shape)."""
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert trt.OnnxParser(network, log).parse(model), log.lines[-3:]
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the log then lists the kernels
    config.max_aux_streams, config.num_compute_capabilities = 0, 1
    config.set_compute_capability(getattr(trt.ComputeCapability, target), 0)
    engine = builder.build_serialized_network(network, config)
    found = [match for match in map(LINE.match, log.lines) if match]
    parts = lambda text: [(t, tuple(map(int, d.split(",")))) for d, t in TENSOR.findall(text)]
    kernels = [(match[1], *map(parts, match.groups()[1:])) for match in found]
    return (bytes(engine), kernels) if engine else (None, log.lines[-1])

def moved(kernels):
    size = {"Float": 4, "Half": 2, "FP8": 1, "Int8": 1}
    return sum(size[t] * int(np.prod(d)) for _, i, _, o in kernels for t, d in i + o)

def show(title, kernels):
    print(f"{title}: {len(kernels)} kernels, {moved(kernels)} bytes in and out of them")
    for name, *parts in kernels:
        print(f"    {name}:", *(f"{' '.join(t + str(list(d)) for t, d in part)} |" for part in parts))

print("TensorRT-RTX", trt.__version__, "onnx", onnx.__version__)

N, D, M = 197, 384, 1152

def mlp(form):
    g = Graph()
    x, int8 = g.op("Relu", "x"), "half" not in form
    wide = lambda k, n: g.const((g.rng.normal(size=(k, n)) / 20).astype(F16))
    first = (g.qdq(x, 0.02), g.weights((D, M), 2e-4)) if int8 else (x, wide(D, M))
    if "Gemm" in form:
        y = g.op("Gemm", *first, g.vector(M))
    else:
        y = g.op("MatMul", *first)
        y = g.qdq(y, 0.02) if "quantised first" in form else y
        y = g.op("Add", y, g.vector(M)) if "bias" in form else y
    y = g.op("Gelu", y) if "GELU" in form else y
    y = g.op("MatMul", g.qdq(y, 0.02), g.weights((M, D), 2e-4)) if int8 else g.op("MatMul", y, wide(M, D))
    return g.model(y, [N, D], [N, D])

first, bytes_moved = {}, {}
for form in ("no bias", "Gemm", "MatMul, bias", "quantised first, bias", "bias, GELU", "half, bias, GELU"):
    _, kernels = build(mlp(form.replace("no bias", "plain")), "SM86")
    show(form, kernels)
    first[form] = kernels[1][3]
    bytes_moved[form] = moved(kernels)
    if form == "half, bias, GELU":
        assert all(word in kernels[1][0] for word in ("Fc", "Add", "Erf")), "one kernel: product, bias and GELU"
assert first["no bias"] == first["quantised first, bias"] == [("Int8", (N, M))]
assert first["Gemm"] == first["MatMul, bias"] == first["bias, GELU"] == [("Half", (N, M))]
assert bytes_moved["quantised first, bias"] < bytes_moved["MatMul, bias"]
assert bytes_moved["half, bias, GELU"] < bytes_moved["bias, GELU"], "INT8 moves more than float16"
print(bytes_moved)
EOF
