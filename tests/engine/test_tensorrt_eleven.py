"""The engine code against TensorRT 11's own bindings, which import here without its libraries.

What asks a library (builder, parser, runtime, engine) is left to `make lint`, which checks names
and arguments against types made of the same bindings, and to a machine that has TensorRT.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tensorrt_stubs
from tensorrt_stubs import LeftOutError

from t2t_deploy.engine import _module as _trt_module

Asked = Callable[[str], object]

PREPARE = """
import json, sys
from types import SimpleNamespace
import tensorrt_bindings as trt
def say(value): print(json.dumps(value))
"""


@pytest.fixture(scope="module")
def wheel() -> Path:
    """TensorRT 11's bindings, as `make lint` left them: the tests ask no package index."""
    found = tensorrt_stubs.cached_wheel(Path(sys.prefix) / "stubs")
    if found is None:
        pytest.skip("TensorRT 11's bindings are not here: `make lint` downloads them")
    return found


@pytest.fixture(scope="module")
def ask(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """Run code in a process that has TensorRT 11's bindings as `trt`; give what it says."""
    try:
        environment = tensorrt_stubs.unpack_bindings(wheel, tmp_path_factory.mktemp("eleven"))
    except LeftOutError as err:
        pytest.skip(f"TensorRT 11's bindings cannot be imported: {err}")

    def run(code: str) -> object:
        command = [sys.executable, "-c", PREPARE + code]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def names_used() -> Iterator[str]:
    """What the engine code reads of a module `trt`, such as BuilderFlag.TF32."""
    for path in Path(_trt_module.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            words = []
            while isinstance(node, ast.Attribute):
                words.append(node.attr)
                node = node.value
            if words and isinstance(node, ast.Name) and node.id == "trt":
                yield ".".join(reversed(words))


def test_every_name_is_there(ask: Asked) -> None:
    asked_for_first = "ComputeCapability"  # with hasattr: TensorRT-RTX alone has it
    names = {name for name in names_used() if not name.startswith(asked_for_first)}
    names.update(_trt_module.TensorRT.__annotations__)
    assert {"BuilderFlag.TF32", "NetworkDefinitionCreationFlag.STRONGLY_TYPED"} <= names
    missing = ask(f"""
import operator
def missing(name):
    try:
        operator.attrgetter(name)(trt)
    except AttributeError:
        return True
say([name for name in {sorted(names)} if missing(name)])
""")
    assert missing == []


def test_what_is_asked_for_first(ask: Asked) -> None:
    """Each `hasattr` of the engine code, and which way it goes; flags that are gone; the types."""
    found = ask("""
from t2t_deploy.engine import _choice as _trt_choice, _network as _trt_network
config, flags = trt.IRuntimeConfig, trt.NetworkDefinitionCreationFlag.__members__
gone = ("FP16", "BF16", "INT8", "FP8")
names = {*_trt_network.NUMPY_NAMES, *(a.dtype for a in _trt_choice._ARITHMETIC)}
types = trt.DataType.__members__
say({
    "targets": hasattr(trt, "ComputeCapability"),
    "runtime config": hasattr(trt.ICudaEngine, "create_runtime_config"),
    "specialization": hasattr(config, "dynamic_shapes_kernel_specialization_strategy"),
    "kernels kept": hasattr(config, "create_runtime_cache"),
    "stream": hasattr(trt.IExecutionContext, "is_stream_capturable"),
    "flags": [name for name in gone if name in trt.BuilderFlag.__members__],
    "old": ["EXPLICIT_BATCH" in flags, hasattr(trt.IBuilderConfig, "int8_calibrator")],
    "types": [sorted(names - set(types)), _trt_network.numpy_name(types["BF16"])],
})
""")
    assert found == {
        **dict.fromkeys(("targets", "specialization", "kernels kept", "stream"), False),
        "runtime config": True,
        "flags": [],
        "old": [False, False],
        "types": [[], "bfloat16"],
    }


def test_its_classes_do_what_ours_ask(ask: Asked) -> None:
    found = ask("""
from t2t_deploy.engine._choice import check_strong_typing, set_targets, supported_sms
from t2t_deploy.engine._module import BuilderLog, new_logger, new_monitor
from t2t_deploy.engine._network import sizes
check_strong_typing(trt)
log, steps, config = BuilderLog(), [], SimpleNamespace()
new_logger(trt, log).log(trt.ILogger.Severity.ERROR, "said")
monitor = new_monitor(trt, lambda *step: steps.append(step))
monitor.phase_start("outer", None, 2)
monitor.step_complete("outer", 0)
set_targets(trt, config, ())
say([
    log.entries, steps, sizes(trt.Dims([1, 3, -1])), supported_sms(trt),
    config.hardware_compatibility_level.name,
    isinstance(trt.IBuilderConfig.hardware_compatibility_level, property),
])
""")
    said, steps = [["ERROR", "said"]], [["outer", 1, 2]]
    assert found == [said, steps, [1, 3, -1], [], "AMPERE_PLUS", True]


def test_another_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "wheel").mkdir()
    other = tmp_path / "wheel" / "other.whl"
    other.write_bytes(b"other")
    assert tensorrt_stubs.cached_wheel(tmp_path) == other
    with pytest.raises(LeftOutError, match=r"is not the tensorrt-cu13-bindings==11"):
        tensorrt_stubs.unpack_bindings(other, tmp_path)


def test_no_index_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(LeftOutError, match=r"cannot download.*\d: .+|for Linux on") as caught:
        tensorrt_stubs.download_wheel(tmp_path)
    assert "\n" not in str(caught.value)


def test_no_compiler_is_said(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LeftOutError, match="no C compiler"):
        tensorrt_stubs.unpack_bindings(wheel, tmp_path / "unpacked")
