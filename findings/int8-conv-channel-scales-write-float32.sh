#!/usr/bin/env bash
# TensorRT-RTX: an INT8 convolution with a scale per output channel writes float32 in a float16 graph.
#
# Guess: convolution with per-channel weight scales is what TensorRT's INT8 was made for: it applies
# scales, bias and ReLU inside the kernel, which writes float16 or INT8.
# Seen: with a *scalar* weight scale that is so: one kernel takes the scale, the bias and the ReLU
# and writes Half. With a vector of scales it writes the sums as Float (four bytes an element,
# in a graph that has only float16 and INT8), and a second kernel multiplies by the vector, adds the
# bias and applies ReLU. It is the same for 1x1 and 3x3, and where a quantiser follows.
# Why it matters: the stem of a vision transformer has the largest tensors of the network. Exporters
# choose per-channel scales for convolutions by default; the whole graph then moves 1.4 times the
# bytes, and bias and activation are no longer inside the convolution.
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

D, S = 64, 56

def stem(channels, k, int8_out):
    g = Graph()
    scale = 2e-4 * (1 + 0.3 * g.rng.random(D)) if channels else 2e-4
    weights = g.weights((D, D, k, k), scale, **({"axis": 0} if channels else {}))
    x = g.qdq(g.op("Relu", "x"), 0.02)
    y = g.op("Conv", x, weights, g.vector(D), kernel_shape=[k, k], pads=[k // 2] * 4)
    y = g.op("Relu", y)
    y = g.op("MaxPool", g.qdq(y, 0.03), kernel_shape=[2, 2], strides=[2, 2]) if int8_out else y
    return g.model(y, [1, D, S, S], [1, D] + [S // 2 if int8_out else S] * 2)

written = {}
for k in (1, 3):
    for int8_out in (False, True):
        for channels in (False, True):
            form = f"{k}x{k}, {'vector' if channels else 'scalar'} scale{', quantised' * int8_out}"
            _, kernels = build(stem(channels, k, int8_out), "SM86")
            show(form, kernels)
            (conv,) = (kernel for kernel in kernels if kernel[0].startswith("Conv"))
            written[k, int8_out, channels] = conv[3][0][0], moved(kernels)
print(written)
for k in (1, 3):
    for int8_out in (False, True):
        scalar, vector = written[k, int8_out, False], written[k, int8_out, True]
        assert vector[0] == "Float" and scalar[0] == "Half", (k, int8_out)
        assert vector[1] > 1.3 * scalar[1]
EOF
