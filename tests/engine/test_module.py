"""The TensorRT module as a value; most of it needs no TensorRT."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from t2t_deploy.engine._choice import check_sms, parse_sm, supported_sms
from t2t_deploy.engine._module import BuilderLog, new_monitor
from t2t_deploy.errors import EngineError, UsageError

from ..program import finish

FAKE = SimpleNamespace(
    __version__="9.9",
    ComputeCapability=SimpleNamespace(
        __members__=dict.fromkeys(["NONE", "CURRENT", "SM120", "SM75", "SM86"])
    ),
    IProgressMonitor=type("IProgressMonitor", (), {}),
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("86", ("86",)),
        ("120, 86,89", ("86", "89", "120")),
        ("8.6,sm_89,SM89", ("86", "89")),
        ("portable", ("portable",)),
        (" Native ", ("native",)),
    ],
)
def test_parse_sm(text: str, expected: tuple[str, ...]) -> None:
    assert parse_sm(text) == expected


@pytest.mark.parametrize("text", ["", "86,", "ampere", "portable,86", "8", "8675"])
def test_parse_sm_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="expected compute capabilities such as 86,89"):
        parse_sm(text)


def test_supported_targets_come_from_the_module() -> None:
    assert supported_sms(FAKE) == ("75", "86", "120")
    assert supported_sms(SimpleNamespace()) == ()


def test_unknown_targets_name_the_known_ones() -> None:
    check_sms(FAKE, ("75", "120"))
    with pytest.raises(EngineError, match="cannot target SM 61; it targets 75, 86, 120") as caught:
        check_sms(FAKE, ("61", "86"))
    assert "Hopper" not in str(caught.value)
    with pytest.raises(EngineError, match="TensorRT-RTX has no Hopper"):
        check_sms(FAKE, ("86", "90"))


def test_errors_of_a_log_are_one_line() -> None:
    log = BuilderLog([("ERROR", "a\n b"), ("INFO", "c"), ("INTERNAL_ERROR", "d")])
    assert log.errors() == "a b; d"
    assert log.errors(last=1) == "d"
    assert log.text == "ERROR: a\n b\nINFO: c\nINTERNAL_ERROR: d\n"


def test_monitor_reports_steps() -> None:
    seen: list[tuple[str, int, int]] = []
    monitor = new_monitor(FAKE, lambda *step: seen.append(step))
    monitor.phase_start("outer", "", 2)
    monitor.phase_start("inner", "outer", 3)
    assert monitor.step_complete("inner", 0)
    monitor.phase_finish("inner")
    assert monitor.step_complete("outer", 1)
    assert seen == [("inner", 1, 3), ("outer", 2, 2)]


def test_importing_loads_no_tensorrt() -> None:
    code = (
        "import sys, t2t_deploy.engine._build, t2t_deploy.engine._device; "
        "sys.exit(any(name.startswith(('tensorrt', 'torch', 'onnx')) for name in sys.modules))"
    )
    assert finish(code=code).status == 0
