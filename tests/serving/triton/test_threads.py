"""Instances on the CPU share the processors: in the configuration, or as the server loads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from t2t_deploy._limits import Limits, read_limits
from t2t_deploy.commands import Package, _package
from t2t_deploy.serving.triton import Accelerator, ServingFormat

from ...cgroups import control_group
from ...program import finish

Make = Callable[..., Package]
# the Python backend as far as loading needs it
LOAD = """
import json, sys, types
from pathlib import Path
sys.modules["triton_python_backend_utils"] = types.ModuleType("triton_python_backend_utils")
folder, config = sys.argv[1:]
namespace = {"__file__": str(Path(folder, "model.py")), "__name__": "model"}
exec(Path(folder, "model.py").read_text(), namespace)
model = namespace["TritonPythonModel"]()
model.initialize({"model_config": config})
print(model._session.get_session_options().intra_op_num_threads)
print(sorted(name for name in sys.modules if name.startswith("t2t_deploy")))
"""


@pytest.mark.parametrize(
    ("options", "threads", "note"),
    [
        ({}, 0, None),
        ({"instances": 3}, 2, "each of 3 instances computes with 2 threads, a share of this"),
        ({"instances": 4}, 1, "each of 4 instances computes with 1 thread, a share of this"),
        ({"instances": 8}, 1, "machine's 6 processors; for a server of another size set --threads"),
        ({"instances": 3, "threads": 5}, 5, None),
        (
            {"instances": 3, "format": ServingFormat.PYTHON},
            *(0, "each of 3 instances computes with its share of the processors that the server"),
        ),
        ({"format": ServingFormat.PYTHON}, 0, None),
        (
            {"instances": 3, "accelerator": Accelerator.OPENVINO},
            *(0, "3 instances are not given a share of the processors"),
        ),
        ({"instances": 3, "accelerator": Accelerator.CUDA}, 0, None),
    ],
)
def test_threads_of_instances_are_chosen_and_said(
    package: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, object],
    threads: int,
    note: str | None,
) -> None:
    monkeypatch.setattr(_package, "read_limits", lambda: Limits(16, 5.5))
    made = package(name="tiny", **options)
    assert made.service.threads == threads
    assert f'string_value: "{threads}"' in (tmp_path / "models/tiny/config.pbtxt").read_text()
    assert len(made.notes) == (note is not None)
    assert note is None or note in made.notes[0]


def loaded_with(folder: Path, instances: int, threads: int, within: list[str]) -> tuple[int, str]:
    """Threads of an instance that the Python backend loads, and our modules that it imports."""
    config = {
        "parameters": {"threads": {"string_value": str(threads)}},
        "instance_group": [{"kind": "KIND_CPU", "count": instances}],
    }
    how: dict[str, Any] = {"code": LOAD, "within": within, "cwd": folder, "env": None}
    number, modules = finish(folder, json.dumps(config), **how, status=0).out.splitlines()
    return int(number), modules


def test_python_instances_share_the_processors_of_the_server(package: Make) -> None:
    folder = package(name="tiny", format=ServingFormat.PYTHON).folders[0] / "1"
    shared = max(1, read_limits().processors // 2)
    modules = [f"t2t_deploy{name}" for name in ("", "._limits", "._processor")]
    assert loaded_with(folder, 2, 0, []) == (shared, str(modules))
    assert loaded_with(folder, 2, 3, [])[0] == 3
    if read_limits().quota is None:
        assert loaded_with(folder, 1, 0, [])[0] == 0  # ONNX Runtime's own choice


@pytest.mark.skipif(read_limits().affinity < 2, reason="one core: a quota narrows nothing")
def test_python_instance_in_a_real_group_takes_its_quota(package: Make) -> None:
    folder = package(name="tiny", format=ServingFormat.PYTHON).folders[0] / "1"
    with control_group(processors=0.5) as within:
        assert loaded_with(folder, 1, 0, within)[0] == 1
