#!/usr/bin/env bash
# TensorRT-RTX: Cast of INT8 weights is refused, Cast of UINT8 weights is taken and stored as float16.
#
# Guess: Cast(int8 initialiser) -> Mul(scale) -> MatMul is plain ONNX and the simplest weight-only
# form. It builds like the same graph with uint8, and both keep one byte per weight.
# Seen: the parser takes both. Then the builder refuses INT8 (and FP8): a "quantized constant" may only
# feed DequantizeLinear or a plug-in. UINT8 builds, but is widened at build time: the engine holds
# the weights as Half, so the smaller file gives no smaller engine. DequantizeLinear keeps a byte.
# Why it matters: a file that ONNX's checker accepts fails late, in the builder; the near-by
# change that builds silently loses what it was for. Only DequantizeLinear is weight-only.
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

def show(title, kernels):
    print(f"{title}: {len(kernels)} kernels")
    for name, *parts in kernels:
        print(f"    {name}:", *(f"{' '.join(t + str(list(d)) for t, d in part)} |" for part in parts))

print("TensorRT-RTX", trt.__version__, "onnx", onnx.__version__)

D = 1024

def linear(code, form):
    g = Graph()
    x = g.op("Relu", "x")
    codes = g.rng.integers(0, 127, (D, D)).astype(code)
    if form == "Cast":
        w = g.op("Mul", g.op("Cast", g.const(codes), to=TensorProto.FLOAT16), g.const(F16(2e-4)))
    else:
        w = g.op("DequantizeLinear", g.const(codes), g.const(F16(2e-4)), g.const(np.zeros((), code)))
    model = g.model(g.op("MatMul", x, w), [1, 197, D], [1, 197, D])
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    return model

stored, refused = {}, {}
for code, form in ((I8, "Cast"), (F8, "Cast"), (np.uint8, "Cast"), (I8, "DequantizeLinear")):
    name = f"{np.dtype(code).name} {form}"
    engine, kernels = build(linear(code, form), "SM89")
    if engine is None:
        refused[name] = kernels
        print(f"{name}: refused: {kernels[:200]}")
        continue
    show(name, kernels)
    print(f"    engine of {len(engine)} bytes")
    stored[name] = [t for k in kernels for t, d in k[2] if d[-2:] == (D, D)], len(engine)
assert set(refused) == {"int8 Cast", "float8_e4m3fn Cast"}
assert "Quantized constant" in refused["int8 Cast"] and "only allowed before DQ" in refused["int8 Cast"]
assert stored["uint8 Cast"][0] == ["Half"] and stored["int8 DequantizeLinear"][0] == ["Int8"]
assert stored["uint8 Cast"][1] - stored["int8 DequantizeLinear"][1] > 0.8 * D * D
EOF
