"""Trained models in 8 bits: what is lost on handwritten digits, with and without outliers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from t2t_deploy.commands import evaluate_artifacts, quantize_onnx
from t2t_deploy.errors import CalibrationError
from t2t_deploy.types import Status, Target
from t2t_deploy.workspace import Workspace

from ..trained import EIGHT_BITS, KINDS, export_weights, trained_weights

# half a point of 600 pictures
MOST_LOST = 3
# five points: what naive int8 must lose at least for the outliers to be worth testing with
RUINED = 30

# every way to 8 bits, and the naive one
FORMS = {
    **EIGHT_BITS,
    "compact": {"target": Target.TENSORRT, "placement": "compact"},
    "naive static": {"target": Target.CPU, "equalise": False},
}

Quantized = Callable[..., dict[str, Any]]


@pytest.fixture
def quantized(digit_pictures: Path) -> Quantized:
    """Quantise a trained model in some forms and evaluate them all on the test part."""

    def run(kind: str, factor: float, *forms: str) -> dict[str, Any]:
        export_weights(Workspace("artifacts"), kind, trained_weights(kind, factor))
        paths = []
        for form in forms:
            request = dict(FORMS[form], images=digit_pictures / "calibration", speed=False)
            paths.append(quantize_onnx(**request).path)
        test = digit_pictures / "test"
        evaluated = evaluate_artifacts(paths, images=test, batch=50, force=True)
        found: dict[str, Any] = dict(zip(forms, evaluated.results, strict=True))
        for form, result in found.items():
            print(
                f"{kind} x{factor:g} {form}: {lost(result)} of 600 lost, agreement "
                f"{result.accuracy.agreement:.2%}, mean error {result.accuracy.rel_l2_mean:.4f}"
            )
        return found

    return run


def lost(result: Any) -> int:
    """Pictures that the float32 reference gets right and the artifact does not, net."""
    assert result.status is Status.PASSED and result.accuracy.images == 600
    net: float = (result.reference.top1 - result.accuracy.top1) * 600
    return round(net)


def check(result: Any, mean_error: float) -> None:
    assert lost(result) <= MOST_LOST
    assert result.accuracy.agreement >= 1 - MOST_LOST / 600
    assert result.accuracy.rel_l2_mean < mean_error


@pytest.mark.parametrize("kind", KINDS)
def test_static_and_dynamic_lose_next_to_nothing(kind: str, quantized: Quantized) -> None:
    for result in quantized(kind, 1, "static cpu", "dynamic").values():
        check(result, 0.01)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_so_do_the_forms_for_other_runtimes(kind: str, quantized: Quantized) -> None:
    found = quantized(kind, 1, "static portable", "static tensorrt", "compact", "fp8")
    check(found["static portable"], 0.01)
    check(found["static tensorrt"], 0.01)
    check(found["compact"], 0.01)
    check(found["fp8"], 0.03)


@pytest.mark.slow
def test_equalisation_undoes_what_outliers_ruin(quantized: Quantized) -> None:
    found = quantized("performer", 100, "naive static", "static cpu")
    assert lost(found["naive static"]) > RUINED
    check(found["static cpu"], 0.01)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [30, 100])
def test_outliers_in_every_form(kind: str, factor: float, quantized: Quantized) -> None:
    """At 30 naive int8 loses little accuracy, but its error is many times as large."""
    forms = ("naive static", "static cpu", "static tensorrt", "compact", "dynamic")
    found = quantized(kind, factor, *forms)
    naive = found.pop("naive static")
    assert naive.accuracy.rel_l2_mean > 0.03
    if factor == 100:
        assert lost(naive) > RUINED
    for result in found.values():
        check(result, 0.01)


@pytest.mark.usefixtures("digits_workspace")
def test_pictures_it_was_calibrated_on_are_refused(digit_pictures: Path) -> None:
    calibration = digit_pictures / "calibration"
    made = quantize_onnx(images=calibration, count=20, speed=False)
    with pytest.raises(CalibrationError, match=r"20 of 100 pictures, .* was calibrated on"):
        evaluate_artifacts([made.path], images=calibration)
    everything = evaluate_artifacts(images=calibration)
    (reason,) = (r.reason for r in everything.results if r.artifact.path == made.path)
    assert reason is not None and "calibrated on; expected none" in reason
    assert [r.status for r in everything.results] == [Status.PASSED, Status.NOT_RUN]
