"""What a recipe's checks say of each artifact: judged, not run for lack of a tool, or failed."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..needs import needs_openvino
from .conftest import followed, statuses


def test_an_artifact_that_was_calibrated_on_a_picture_is_not_judged_on_it(done: Path) -> None:
    """The float one is; that int8 was not evaluated is a failure, not a row beside."""
    shutil.copy(done / "train" / "3.png", done / "val" / "a" / "again.png")
    again = followed(done)
    evaluated = next(step for step in again.steps if step.step == "evaluate")
    assert statuses(again)["evaluate"] == "failed" and again.exit_status == 1
    assert evaluated.reason.startswith("not evaluated: tiny-32-int8-portable-")
    assert evaluated.reason.endswith("evaluate on others, or calibrate on others")
    assert evaluated.result is not None
    assert [row["status"] for row in evaluated.result["results"]] == ["passed", "not_run"]


@needs_openvino
def test_one_that_a_runtime_does_not_compute_leaves_the_others_judged(fresh: Path) -> None:
    """OpenVINO would compute ranges taken at run time in float32."""
    path = fresh / "recipe.toml"
    text = path.read_text()
    text = text[: text.index("[calibrate]")] + '[quantize]\nmode = "dynamic"\nno-speed = true\n'
    checks = '[verify]\nbackend = "openvino"\n[evaluate]\nimages = "val"\nbackend = "openvino"\n'
    path.write_text(text + checks)
    done = followed(fresh)
    assert statuses(done) == dict.fromkeys(
        ("export float", "quantize int8", "verify", "evaluate"), "done"
    )
    for step in done.steps[-2:]:
        assert step.result is not None
        rows = [(row["status"], row["reason"]) for row in step.result["results"]]
        assert rows == [
            ("passed", None),
            ("not_run", "it takes ranges at run time, and OpenVINO would compute it in float32"),
        ]
