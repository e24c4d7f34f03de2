"""Accuracy budgets on a trained model whose outlier channels ruin naive int8."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from t2t_deploy.commands import QuantizationMode, quantize_onnx
from t2t_deploy.errors import CalibrationError, ImageError
from t2t_deploy.types import Target
from t2t_deploy.workspace import Manifest, Workspace

from ..trained import export_weights, trained_weights


@pytest.mark.slow
def test_the_layers_behind_outliers_go_back_to_float(digit_pictures: Path) -> None:
    workspace = Workspace("artifacts")
    export_weights(workspace, "performer", trained_weights("performer", 100))
    made = quantize_onnx(
        target=Target.CPU,
        images=digit_pictures / "calibration",
        equalise=False,
        max_drop=0.5,
        eval=digit_pictures / "test",
        speed=False,
    )
    details = made.require_manifest().details
    budget = details["budget"]
    assert budget["status"] == "passed" and budget["measure"] == "top-1"
    assert 0 <= budget["drop"] <= 0.5 and budget["images"] == 600
    behind_norms = {
        layer["name"]
        for layer in details["quantization"]["layers"]
        if layer["name"].endswith((".q", ".k", ".v", ".fc1"))
    }
    assert budget["returned"] and set(budget["returned"]) <= behind_norms
    in_float = {x["name"] for x in details["quantization"]["layers"] if not x["quantized"]}
    assert set(budget["returned"]) <= in_float
    # every layer behind a norm alone costs more than any other layer does
    costs = {tuple(group["layers"]): group["rel_l2"] for group in budget["costs"]}
    worst_other = max(cost for names, cost in costs.items() if not set(names) <= behind_norms)
    assert max(costs.values()) > 3 * worst_other
    assert budget["trials"][0]["drop"] > 5
    assert (workspace.root / budget["plot"]).is_file()
    written = json.loads((workspace.root / budget["plot"]).with_suffix(".json").read_text())
    assert written["returned"] == budget["returned"]
    assert not made.require_manifest().failed


Budget = Callable[..., Manifest]


@pytest.fixture
def budget(digits_workspace: None, digit_pictures: Path) -> Budget:
    """Quantise with ranges at run time within a budget."""

    def quantise(**options: Any) -> Manifest:
        form = {"mode": QuantizationMode.DYNAMIC, "eval": digit_pictures / "test", **options}
        return quantize_onnx(**form, speed=False).require_manifest()

    return quantise


def test_an_impossible_budget_fails_the_artifact(budget: Budget) -> None:
    manifest = budget(max_drop=-1)
    assert manifest.details["budget"]["status"] == "failed" and manifest.failed
    assert "where at most -1 may be" in manifest.failure
    assert manifest.details["quantization"]["quantized_nodes"] > 0


def test_no_budget_is_met_where_labels_are_in_another_order(budget: Budget) -> None:
    """The float model is then right no more often than chance, so that nothing can be lost."""
    shifted = Path("class_to_idx.json")
    shifted.write_text(json.dumps({str(digit): (digit + 1) % 10 for digit in range(10)}))
    manifest = budget(max_drop=1, class_order=shifted)
    assert manifest.details["budget"]["status"] == "failed" and manifest.failed
    assert manifest.failure.startswith("no loss of accuracy can be measured: the float model is")
    assert "in text order: the labels may be in another order than its classes" in manifest.failure
    manifest = budget(max_drop=1)
    assert manifest.details["budget"]["status"] == "passed" and not manifest.failed


@pytest.mark.parametrize("readable", [False, True], ids=["none", "some"])
def test_unreadable_pictures_are_not_among_the_measured(
    budget: Budget, digit_pictures: Path, readable: bool
) -> None:
    for folder in (digit_pictures / "test").iterdir():
        mine = Path("val") / folder.name
        mine.mkdir(parents=True)
        (mine / "cut.png").write_bytes(b"cut")
        for picture in sorted(folder.iterdir())[: 3 * readable]:
            shutil.copy(picture, mine)
    refused = nullcontext() if readable else pytest.raises(ImageError, match="no drop can be mea")
    with refused:
        manifest = budget(max_drop=100, eval="val")
        assert manifest.details["budget"]["images"] == 30


@pytest.mark.usefixtures("digits_workspace")
def test_it_is_not_measured_on_calibration_pictures(digit_pictures: Path) -> None:
    both = digit_pictures / "calibration"
    with pytest.raises(CalibrationError, match="100 of 100 pictures"):
        quantize_onnx(images=both, eval=both, speed=False)
