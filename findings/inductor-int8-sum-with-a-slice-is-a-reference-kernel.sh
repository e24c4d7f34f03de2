#!/usr/bin/env bash
# torch.compile: the sum of an INT8 product and a slice runs in a reference kernel, hundreds of times slower.
#
# Guess: Inductor fuses v + Linear(x) into the product, and it costs the same whether v is a tensor of its own or
# some columns of a wider one, for a fused sum reads each number once in either case.
# Seen: with v of its own oneDNN computes the product in its VNNI kernel; with v = wide[:, 128:], fused as well, the
# strided operand leaves oneDNN nothing but ref_int8. No message; the results are the same.
# Why it matters: values cut from one product of queries, keys and values are what every attention has. PT2E's INT8
# of a T2T-ViT, whose performers add their values, took 17 times as long as float32 eager, nearly all of it there.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 torchao==0.18.0 numpy==2.4.6 setuptools
cd "$folder"
cat > product.py <<'EOF'
import statistics
import sys
import time

import torch
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86


class Sum(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(64, 64)

    def forward(self, x, wide):
        return wide[:, -64:] + self.linear(x)


width = int(sys.argv[1])
torch.manual_seed(0)
model, inputs = Sum().eval(), (torch.randn(3136, 64), torch.randn(3136, width))
with torch.no_grad():
    settings = x86.get_default_x86_inductor_quantization_config()
    quantizer = x86.X86InductorQuantizer().set_global(settings)
    prepared = prepare_pt2e(torch.export.export(model, inputs).module(), quantizer)
    prepared(*inputs)
    compiled = torch.compile(convert_pt2e(prepared))
    expected, actual = model(*inputs), compiled(*inputs)
    assert float((actual - expected).norm() / expected.norm()) < 0.05
    spent = []
    for _ in range(5):
        started = time.perf_counter()
        compiled(*inputs)
        spent.append(time.perf_counter() - started)
print("torch", torch.__version__)
print(f"ms {statistics.median(spent) * 1e3:.2f}")
EOF
for width in 64 192; do
    TORCHINDUCTOR_FREEZING=1 ONEDNN_VERBOSE=1 TORCHINDUCTOR_CACHE_DIR="$folder/$width" \
        "$folder/venv/bin/python" product.py "$width" > "$width.log" 2> "$width.err" || { tail -3 "$width.err"; exit 1; }
    kernel=$(grep -E '^onednn_verbose.*,exec,cpu,matmul,' "$width.log" | tail -1 | cut -d, -f6-7 | sed 's/.*matmul,//')
    echo "sum with the last 64 of $width columns: kernel $kernel, $(grep '^ms' "$width.log") - $(grep '^torch' "$width.log")"
    echo "$kernel" > "$width.kernel"
done
if grep -q ref 64.kernel || ! grep -q ref 192.kernel; then
    echo "changed, or no AVX-512 with VNNI here: see the head of this file" >&2
    exit 1
fi
