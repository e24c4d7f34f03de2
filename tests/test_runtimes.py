"""The table of other runtimes: what is right, what a cell says, and which notes it gets."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import runtimes
from runtimes import (
    FILES,
    RUNTIMES,
    Cell,
    File,
    files_of,
    judge,
    make_files,
    output_error,
    table,
    unexplained,
)

from t2t_deploy.types import softmax

from .onnx_models import parsed

TOLERANCE = 1e-5
ABOUT = {"tolerance": TOLERANCE, "tail": "logits"}
LOGITS = np.array([[3.0, 0.0, 4.0], [0.0, 2.0, 0.0], [1.0, 2.0, 2.0]])
EXPECTED = {"image": np.zeros(1), "logits": LOGITS, "typical": np.array(1.0)}


def cell(one: float | None, three: float | None, **reason: str) -> Cell:
    return Cell({"1": one, "3": three}, reason, TOLERANCE)


def found(one: np.ndarray, three: np.ndarray) -> dict[str, Any]:
    return {"reasons": {}, "outputs": {"1": {"logits": one}, "3": {"logits": three}}}


def test_error_is_of_the_worst_picture() -> None:
    actual = LOGITS.copy()
    actual[1, 1] += 0.5  # a quarter of that row's length
    actual[2, 0] += 0.3  # a tenth
    assert output_error({"logits": actual}, EXPECTED, "logits") == pytest.approx(0.25)


def test_logits_near_zero_are_compared_with_the_typical_norm() -> None:
    expected = {"logits": np.full((1, 2), 1e-9), "typical": np.array(10.0)}
    error = output_error({"logits": np.array([[1e-9, 1e-3]])}, expected, "logits")
    assert error == pytest.approx(1e-4, rel=1e-3)


def test_an_embedding_has_no_typical_norm() -> None:
    expected = {"embedding": np.full((1, 2), 1e-3), "typical": np.array(10.0)}
    error = output_error({"y": np.array([[1e-3, 2e-3]])}, expected, "embedding")
    assert error == pytest.approx(1 / np.sqrt(2))


def test_flat_logits_are_rows() -> None:
    assert output_error({"y": LOGITS.ravel()}, EXPECTED, "logits") == 0


@pytest.mark.parametrize("actual", [LOGITS[:2], LOGITS[:, :2], np.full_like(LOGITS, np.nan)])
def test_another_shape_or_no_number_is_infinitely_wrong(actual: np.ndarray) -> None:
    assert output_error({"logits": actual}, EXPECTED, "logits") == np.inf


def top(indices: list[list[int]], **changes: Any) -> dict[str, np.ndarray]:
    own = np.array(indices)
    values = np.take_along_axis(softmax(LOGITS)[: len(own)], np.clip(own, 0, 2), 1)
    return {"probabilities": values, "indices": own} | changes


def test_top_classes_may_be_ties_in_any_order() -> None:
    for tied in ([1, 2], [2, 1]):
        assert output_error(top([[2, 0], [1, 0], tied]), EXPECTED, "topk") < 1e-12
    assert output_error(top([[2, 0], [1, 2], [1, 2]]), EXPECTED, "topk") < 1e-12


@pytest.mark.parametrize(
    ("outputs", "least"),
    [
        (top([[0, 2], [1, 0], [1, 2]]), 0.5),  # the order
        (top([[2, 1], [1, 0], [1, 2]]), 0.1),  # another class
        (top([[2, 3], [1, 0], [1, 2]]), np.inf),  # no class
        (top([[2, -1], [1, 0], [1, 2]]), np.inf),
        (top([[2, 0], [1, 0]]), np.inf),  # a picture less
        ({"probabilities": LOGITS}, np.inf),
        ({"one": LOGITS}, np.inf),
    ],
)
def test_wrong_top_classes(outputs: dict[str, np.ndarray], least: float) -> None:
    assert output_error(outputs, EXPECTED, "topk") >= least


def test_top_classes_without_names_are_taken_by_their_order() -> None:
    values, indices = top([[2, 0], [1, 0], [1, 2]]).values()
    assert output_error({"a": values, "b": indices}, EXPECTED, "topk") < 1e-12


def test_both_batches_are_judged() -> None:
    judged = judge(found(LOGITS, LOGITS * 1.5), EXPECTED, ABOUT)
    assert judged.error == {"1": 0, "3": pytest.approx(0.5)}
    assert not judged.right
    assert judge(found(LOGITS, LOGITS), EXPECTED, ABOUT).right


def test_a_file_that_does_not_load_has_a_reason_and_no_error() -> None:
    judged = judge({"reasons": {"load": "no kernel"}, "outputs": {}}, EXPECTED, ABOUT)
    assert judged == Cell({}, {"load": "no kernel"}, TOLERANCE)
    assert not judged.right


def test_a_batch_that_fails_keeps_the_others_error() -> None:
    one = {"reasons": {"3": "one picture"}, "outputs": {"1": {"logits": LOGITS}}}
    judged = judge(one, EXPECTED, ABOUT)
    assert judged.error == {"1": 0, "3": None}
    assert not judged.right
    assert judged.text() == "0.0e+00, no at 3: one picture"


@pytest.mark.parametrize(
    ("one", "three", "right"),
    [
        (1e-6, 1e-5, True),
        (1e-6, 1.1e-5, False),
        (1.1e-5, 1e-6, False),
        (None, 1e-6, False),
        (1e-6, None, False),
        (float("nan"), 1e-6, False),
        (float("inf"), float("inf"), False),
    ],
)
def test_right_is_both_within_the_tolerance(
    one: float | None, three: float | None, right: bool
) -> None:
    assert cell(one, three).right is right


def test_a_runtime_that_takes_one_picture_is_right_by_that() -> None:
    left_out = {"3": "not applicable: one picture at a time"}
    assert cell(1e-6, None, **left_out).right
    assert not cell(1e-4, None, **left_out).right
    assert not cell(None, None, **{"1": "not applicable: no", **left_out}).right


def test_a_cell_without_errors_is_not_right() -> None:
    assert not Cell({}, {}, TOLERANCE).right


@pytest.mark.parametrize(
    ("one", "three", "text"),
    [
        (1e-6, 2e-6, "2.0e-06"),
        (3e-6, 2e-6, "3.0e-06"),
        (1e-3, 2e-2, "**2.0e-02**"),
        (1e-6, 2e-2, "1.0e-06 at 1, **2.0e-02** at 3"),
        (float("inf"), float("inf"), "**inf**"),
    ],
)
def test_text_of_errors(one: float, three: float, text: str) -> None:
    assert cell(one, three).text() == text


def test_reasons_are_numbered_once() -> None:
    notes: list[str] = []
    assert Cell({}, {"load": "a"}, 0).text(notes) == "no [1]"
    assert cell(1e-6, None, **{"3": "b"}).text(notes) == "1.0e-06, no at 3 [2]"
    assert cell(None, None, **{"1": "a", "3": "a"}).text(notes) == "no [1]"
    why = "not applicable: c"
    assert Cell({}, {"load": why}, 0).text(notes) == "n/a [3]"
    assert notes == ["a", "b", why]


def test_the_tensor_that_differs_is_a_note() -> None:
    notes = ["a"]
    wrong = Cell({"1": 1.0, "3": 1.0}, {}, TOLERANCE, first="/norm/out (MatMul)")
    assert wrong.text(notes) == "**1.0e+00** [2]"
    assert notes[1] == "the first tensor that differs is /norm/out (MatMul)"
    assert wrong.text().endswith("/norm/out (MatMul)")


def test_reasons_of_one_cause_are_one_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "_CAUSES", ((r"implementation for \w+\(13\)", "no bf16"),))
    notes: list[str] = []
    for operator in ("MatMul", "Cast"):
        why = f"Could not find an implementation for {operator}(13) node"
        assert Cell({}, {"load": why}, 0).text(notes) == "no [1]"
    assert Cell({}, {"load": "other"}, 0).text(notes) == "no [2]"
    assert notes == ["no bf16", "other"]


def test_what_differs_from_file_to_file_is_not_in_a_reason() -> None:
    words = "/home/me/files/a.onnx:3:14: no kernel for node; node /blocks.0/MatMul | more"
    why = judge({"reasons": {"load": words}, "outputs": {}}, EXPECTED, ABOUT).reason["load"]
    assert why == "a.onnx: no kernel for node"
    long = judge({"reasons": {"load": "word " * 90}, "outputs": {}}, EXPECTED, ABOUT)
    assert len(long.reason["load"]) <= 150


def test_rows_of_the_table() -> None:
    first, ncnn = RUNTIMES[0], RUNTIMES[-1]
    assert ncnn.option
    good = {"error": {"1": 1e-7, "3": 1e-7}, "reason": {}, "tolerance": TOLERANCE}
    bad = {"error": {}, "reason": {"load": "no"}, "tolerance": TOLERANCE}
    results = {
        first.title: {"version": "1.0", "cells": {"14-fp32": good}},
        ncnn.title: {"version": None, "cells": {"14-int8-static": bad}},
    }
    notes: list[str] = []
    lines = table(results, "14", notes).splitlines()
    assert lines[0] == "| 14 | fp32 | int8 static |"
    assert lines[2:] == [
        f"| {first.name} 1.0 | 1.0e-07 | not run |",
        f"| {ncnn.name}, {ncnn.option} | not run | no [1] |",
    ]


def test_files_of_an_option_have_names_of_their_own_and_the_same_column() -> None:
    assert len({file.stem for one in RUNTIMES for file in one.files}) == len(FILES) * len(
        {one.option for one in RUNTIMES}
    )
    one = File("14", FILES[0].kind, "--target ncnn")
    assert (one.column, one.stem) == ("14-fp32", "14-fp32-target-ncnn")
    assert [file.stem for file in files_of(RUNTIMES)] == list(
        dict.fromkeys(file.stem for one in RUNTIMES for file in one.files)
    )


def test_a_form_that_export_refuses_is_a_reason(tmp_path: Path) -> None:
    kind = next(file.kind for file in FILES if file.kind.name == "fp16")
    make_files(tmp_path, [File("performer", kind, "--target ncnn")])
    (told,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    assert "fp16" in told["refused"]


def test_a_wrong_cell_that_inspect_calls_right_is_named(tmp_path: Path) -> None:
    ncnn = next(one for one in RUNTIMES if one.known == "ncnn")
    file = tmp_path / "performer-fp32.onnx"

    def named(operator: str, judged: Cell) -> list[str]:
        graph = f"g (float[1, 4] image) => (float[1, 4] logits) {{ logits = {operator} (image) }}"
        onnx.save(parsed(graph), file)
        cells = {"performer-fp32": dataclasses.asdict(judged)}
        return list(unexplained({ncnn.title: {"version": None, "cells": cells}}, tmp_path))

    (line,) = named("Relu", cell(1.0, 1.0))
    assert "performer-fp32" in line
    assert not named("ReduceSum", cell(1.0, 1.0))
    assert not named("Relu", cell(1e-7, 1e-7))
    assert not named("Relu", Cell({}, {"load": "not run: no such program"}, 0))
