"""Trained models in 8 bits: what is lost on handwritten digits, with and without outliers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from digits import digits_split

from t2t_deploy.errors import CalibrationError
from t2t_deploy.model import config_from_toml, load_checkpoint, save_weights
from t2t_deploy.pipeline import (
    EvaluatedArtifact,
    EvaluateRequest,
    ExportRequest,
    QuantizationMode,
    QuantizeRequest,
    Workspace,
    evaluate_artifacts,
    export_model,
    quantize_artifact,
)
from t2t_deploy.types import Precision, Status, Target

from ..outliers import with_outliers

pytest.importorskip("onnxruntime")

FOLDER = Path(__file__).parents[1] / "digits"
KINDS = ("performer", "transformer")
# half a point of 600 pictures
MOST_LOST = 3
# five points: what naive int8 must lose at least for the outliers to be worth testing with
RUINED = 30

# every way to 8 bits, and the naive one
FORMS: Mapping[str, QuantizeRequest] = {
    "static cpu": QuantizeRequest(target=Target.CPU),
    "static portable": QuantizeRequest(target=Target.PORTABLE),
    "static tensorrt": QuantizeRequest(target=Target.TENSORRT),
    "dynamic": QuantizeRequest(mode=QuantizationMode.DYNAMIC),
    "fp8": QuantizeRequest(precision=Precision.FP8),
    "naive static": QuantizeRequest(target=Target.CPU, equalise=False),
}

Quantized = Callable[..., dict[str, EvaluatedArtifact]]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The calibration and the test part as files in class folders."""
    folder = tmp_path_factory.mktemp("digits")
    split = digits_split()
    split.calibration.write(folder / "calibration")
    split.test.write(folder / "test")
    return folder


def export(workspace: Workspace, kind: str, factor: float) -> None:
    """Export a trained model, its norms' channels scaled by a factor without changing it."""
    toml = FOLDER / f"{kind}.toml"
    weights = load_checkpoint(FOLDER / f"{kind}.pth.tar", config=config_from_toml(toml)).state_dict
    if factor != 1:
        weights = with_outliers(weights, factor).state_dict
    workspace.root.mkdir(parents=True)
    checkpoint = workspace.root / "digits.safetensors"
    save_weights(weights, checkpoint)
    export_model(workspace, ExportRequest(config_file=toml, checkpoint=checkpoint))


@pytest.fixture
def quantized(tmp_path: Path, pictures: Path) -> Quantized:
    """Quantise a trained model in some forms and evaluate them all on the test part."""

    def run(kind: str, factor: float, *forms: str) -> dict[str, EvaluatedArtifact]:
        workspace = Workspace(tmp_path / "artifacts")
        export(workspace, kind, factor)
        paths = []
        for form in forms:
            request = dataclasses.replace(
                FORMS[form], images=pictures / "calibration", measure_speed=False
            )
            paths.append(quantize_artifact(workspace, request).path)
        named = EvaluateRequest(images=pictures / "test", artifacts=paths, batch=50, force=True)
        found = dict(zip(forms, evaluate_artifacts(workspace, named).results, strict=True))
        for form, result in found.items():
            accuracy = result.accuracy
            assert accuracy is not None and accuracy.agreement is not None
            print(
                f"{kind} x{factor:g} {form}: {lost(result)} of 600 lost, agreement "
                f"{accuracy.agreement:.2%}, mean error {accuracy.rel_l2_mean:.4f}"
            )
        return found

    return run


def lost(result: EvaluatedArtifact) -> int:
    """Pictures that the float32 reference gets right and the artifact does not, net."""
    assert result.status is Status.PASSED
    assert result.accuracy is not None and result.accuracy.images == 600
    assert result.accuracy.top1 is not None
    assert result.reference is not None and result.reference.top1 is not None
    return round((result.reference.top1 - result.accuracy.top1) * 600)


def check(result: EvaluatedArtifact, mean_error: float) -> None:
    assert lost(result) <= MOST_LOST
    assert result.accuracy is not None
    assert result.accuracy.agreement is not None and result.accuracy.rel_l2_mean is not None
    assert result.accuracy.agreement >= 1 - MOST_LOST / 600
    assert result.accuracy.rel_l2_mean < mean_error


@pytest.mark.parametrize("kind", KINDS)
def test_static_and_dynamic_lose_next_to_nothing(kind: str, quantized: Quantized) -> None:
    for result in quantized(kind, 1, "static cpu", "dynamic").values():
        check(result, 0.01)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_so_do_the_forms_for_other_runtimes(kind: str, quantized: Quantized) -> None:
    found = quantized(kind, 1, "static portable", "static tensorrt", "fp8")
    check(found["static portable"], 0.01)
    check(found["static tensorrt"], 0.01)
    check(found["fp8"], 0.03)


@pytest.mark.slow
def test_outliers_ruin_naive_int8_and_equalisation_brings_all_of_it_back(
    quantized: Quantized,
) -> None:
    found = quantized("performer", 100, "naive static", "static cpu")
    assert lost(found["naive static"]) > RUINED
    check(found["static cpu"], 0.01)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [30, 100])
def test_outliers_in_every_form(kind: str, factor: float, quantized: Quantized) -> None:
    """At 30 naive int8 loses little accuracy, but its error is many times as large."""
    found = quantized(kind, factor, "naive static", "static cpu", "static tensorrt", "dynamic")
    naive = found.pop("naive static")
    assert naive.accuracy is not None and naive.accuracy.rel_l2_mean is not None
    assert naive.accuracy.rel_l2_mean > 0.03
    if factor == 100:
        assert lost(naive) > RUINED
    for result in found.values():
        check(result, 0.01)


def test_pictures_it_was_calibrated_on_are_refused(tmp_path: Path, pictures: Path) -> None:
    workspace = Workspace(tmp_path / "artifacts")
    export(workspace, "performer", 1)
    calibration = pictures / "calibration"
    request = QuantizeRequest(images=calibration, count=20, measure_speed=False)
    made = quantize_artifact(workspace, request)
    named = EvaluateRequest(images=calibration, artifacts=[made.path])
    with pytest.raises(CalibrationError, match=r"20 of 100 pictures, .* was calibrated on"):
        evaluate_artifacts(workspace, named)
    everything = evaluate_artifacts(workspace, EvaluateRequest(images=calibration))
    (reason,) = (r.reason for r in everything.results if r.artifact.path == made.path)
    assert reason is not None and "calibrated on; expected none" in reason
    assert [r.status for r in everything.results] == [Status.PASSED, Status.NOT_RUN]
