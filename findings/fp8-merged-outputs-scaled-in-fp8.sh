#!/usr/bin/env bash
# TensorRT-RTX: three FP8 products with their own output scales are rescaled in FP8 arithmetic.
#
# Guess: q, k and v are FP8 products of one tensor, each quantised to FP8 with its own scale. Where
# they are merged into one GEMM, each third is multiplied by its own factor in float32 before the
# one rounding to FP8; or they stay three GEMMs.
# Seen: on SM89 the merged GEMM has the factor 1.0 and writes the bare sums as FP8 (which end at
# 448). A second kernel multiplies them in FP8 by a vector of factors that are stored as FP8: below
# 2^-6 only multiples of 2^-9 exist, so 0.0044 becomes 0.0039 and 0.0006 becomes 0. With one
# scale for all three the exact factor is in the GEMM and the second kernel is gone.
# Why it matters: calibrated scales differ and the factors are about 1e-3. The engine builds without
# a word, and whichever of q, k, v has the factor 0 becomes 0. Give all three the same scales.
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

N, D, H = 197, 384, 6

def attention(outputs):
    g = Graph()
    x = g.qdq(g.op("Relu", "x"), 0.02, F8)
    q, k, v = (g.qdq(g.op("MatMul", x, g.weights((D, D), 0.002, F8)), s, F8) for s in outputs)
    def heads(y, order):
        return g.op("Transpose", g.op("Reshape", y, g.const([-1, N, H, D // H])), perm=order)
    q, k, v = heads(q, [0, 2, 1, 3]), heads(k, [0, 2, 3, 1]), heads(v, [0, 2, 1, 3])
    a = g.qdq(g.op("Softmax", g.op("MatMul", q, k), axis=-1), 1 / 448, F8)
    y = g.op("Transpose", g.op("MatMul", a, v), perm=[0, 2, 1, 3])
    return g.model(g.op("Reshape", y, g.const([-1, N, D])), [1, N, D], [1, N, D])

def gemm_factors(engine):
    found = re.findall(rb" alpha=([0-9A-F]{8}) ", engine)
    return [float(np.frombuffer(bytes.fromhex(f.decode()), ">f4")[0]) for f in found]

own = (0.009, 0.064, 0.025)
engine, kernels = build(attention(own), "SM89")
show("own scales", kernels)
exact = [float(F16(0.02)) * float(F16(0.002)) / float(F16(s)) for s in own]
factors = gemm_factors(engine)
runs = re.findall(rb"([^\0])\1{383}(.)\2{383}([^\0])\3{383}", engine, re.S)  # a byte D times, thrice
runs = [np.frombuffer(b"".join(run), F8).astype(float).tolist() for run in runs]
print("    factor in the GEMM:", factors, " wanted:", exact, " stored as FP8:", runs)
gemm, after = kernels[1:3]
assert gemm[0].count("MatMul") == 3 and gemm[3] == [("FP8", (1, N, 3 * D))] and factors == [1.0]
assert "MulAdd" in after[0] and {t for part in after[1:] for t, _ in part} == {"FP8"}
assert b"= __myln_mul___myln_fp8_e4m3___myln_fp8_e4m3(" in engine, "the source of the kernel"
assert sorted(float(F8(f)) for f in exact) in [sorted(run) for run in runs] and float(F8(exact[1])) == 0
engine, kernels = build(attention((0.009,) * 3), "SM89")
show("one scale", kernels)
print("    factor in the GEMM:", gemm_factors(engine))
assert np.allclose(gemm_factors(engine), exact[0], rtol=1e-6)
assert not any("MulAdd" in kernel[0] for kernel in kernels)
EOF
