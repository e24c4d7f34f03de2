"""`import t2t_deploy` and `t2t-deploy --help` load no framework."""

from __future__ import annotations

import json

import pytest

from ..program import finish

HEAVY = (
    *("torch", "onnx", "onnxscript", "onnxruntime", "openvino"),
    *("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"),
)

IMPORT, BENCH = "import t2t_deploy", "import t2t_deploy.bench"
HELP = """
import runpy
sys.argv = ["t2t-deploy", "--help"]
try:
    runpy.run_module("t2t_deploy", run_name="__main__", alter_sys=True)
except SystemExit as exit:
    assert not exit.code, exit.code
"""
# what the program prints goes before the last line, which is ours
REPORT = "print('\\n' + json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"


def packages_after(program: str) -> set[str]:
    """Top-level packages in sys.modules after the program ran in a fresh interpreter."""
    done = finish(code=f"import json, sys\n{program}\n{REPORT}", status=0)
    return set(json.loads(done.out.splitlines()[-1]))


@pytest.mark.parametrize("program", [IMPORT, BENCH, HELP], ids=["import", "bench", "help"])
def test_no_framework_is_loaded(program: str) -> None:
    loaded = packages_after(program)
    assert "t2t_deploy" in loaded and (program == HELP or "rich" not in loaded)
    assert loaded.isdisjoint(HEAVY), sorted(loaded.intersection(HEAVY))


@pytest.mark.parametrize("package", ["onnx", "safetensors"])
def test_a_loaded_package_is_seen(package: str) -> None:
    assert package in packages_after(f"import {package}")
