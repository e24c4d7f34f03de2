"""Models of one output, of few and of several labels: from the export to the service."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from t2t_deploy.commands import (
    Package,
    _evaluate_sessions,
    evaluate_artifacts,
    evaluate_values,
    export_onnx,
    package_artifact,
    predict_images,
    quantize_onnx,
    verify_artifacts,
)
from t2t_deploy.errors import MisfitError, UsageError
from t2t_deploy.model import config_from_toml, random_state_dict, save_weights
from t2t_deploy.pictures import labelled_set_with_targets
from t2t_deploy.runtime import SessionRequest, open_session
from t2t_deploy.serving import PredictedImage
from t2t_deploy.types import Activation, sigmoid
from t2t_deploy.verify import logits_of, standard_pictures
from t2t_deploy.workspace import Artifact, Workspace

from ..noise import write_noise
from ..small import tiny_model


@pytest.fixture(autouse=True)
def _pictures(empty_folder: Path) -> None:
    for index, folder in enumerate(("val/no", "val/yes", "train")):
        write_noise(*(Path(folder, f"{n}.png") for n in range(4)), seed=index)


def exported(classes: int, seed: int = 0, **options: Any) -> Artifact:
    config = Path(f"{classes}.toml")
    config.write_text(tiny_model(num_classes=classes))
    weights = Path(f"{classes}-{seed}.safetensors")
    save_weights(random_state_dict(config_from_toml(config), seed=seed), weights)
    return export_onnx(config=config, checkpoint=weights, **options)


def logits(artifact: Artifact) -> np.ndarray:
    with open_session(SessionRequest("ort-cpu", artifact.path)) as session:
        return logits_of(
            session, standard_pictures(artifact.require_manifest().preparation).pictures
        )


def predicted(artifact: Artifact, **options: Any) -> list[PredictedImage]:
    kept: list[PredictedImage] = []
    predict_images(artifact.path, "val/no/0.png", receive=kept.append, **options)
    return kept


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("classes", [1, 2, 3])
def test_right_graphs_of_few_outputs_pass(classes: int, precision: str) -> None:
    """Seeds whose one output is near zero on a picture: by its own norm they fail."""
    for seed in (101, 105, 106):
        made = exported(classes, seed, precision=precision, batch=1)
        verification = made.require_manifest().verification or {}
        assert verification["status"] == "passed", seed


def test_a_sigmoid_tail_is_verified_and_predicted_with() -> None:
    bare = exported(3)
    made = exported(3, tail="sigmoid")
    (verdict,) = verify_artifacts([made.path], locate=True)
    assert verdict.verification.status.value == "passed" and verdict.located is not None
    assert verdict.located.status.value == "passed"
    with open_session(SessionRequest("ort-cpu", made.path)) as session:
        taken = standard_pictures(made.require_manifest().preparation).pictures
        found = session.run({"image": taken})["probabilities"]
    np.testing.assert_allclose(found, sigmoid(logits(bare)), atol=1e-6)
    (inside,), (behind,) = predicted(made), predicted(bare, activation="sigmoid")
    assert [one.index for one in inside.top] == [one.index for one in behind.top]
    shares = [one.probability for one in inside.top]
    assert shares == sorted(shares, reverse=True)
    assert shares == pytest.approx([one.probability for one in behind.top], abs=1e-6)
    (eager,) = predicted(made, backend="eager")
    assert [one.probability for one in eager.top] == pytest.approx(shares, abs=1e-5)
    with pytest.raises(UsageError, match="activation is softmax, and the artifact gives"):
        predicted(made, activation="softmax")


def test_one_output_is_a_sigmoid_and_it_is_said() -> None:
    made = exported(1)
    notes = Mock()
    (found,) = predicted(made, progress=notes)
    assert "one output: its probability is the sigmoid" in str(notes.note.mock_calls)
    (only,) = found.top
    assert only.index == 0 and 0 < only.probability < 1
    for tail in ("softmax", "topk"):
        with pytest.raises(UsageError, match="one output, whose softmax is 1"):
            exported(1, tail=tail)
    with pytest.raises(UsageError, match="one output, whose softmax is 1"):
        predicted(made, activation="softmax")


def test_two_class_folders_are_the_no_and_the_yes_of_one_output() -> None:
    paths = [exported(1).path, exported(1, tail="sigmoid").path]
    notes = Mock()
    found = evaluate_artifacts(paths, images="val", progress=notes)
    told = "class folder 'no' is a no, 'yes' is a yes; a yes is a probability of at least 0.5"
    assert told in str(notes.note.mock_calls)
    values = evaluate_values(found)["results"]
    for one in values:
        assert one["status"] == "passed" and one["top1"] is None and one["agreement"] == 1
        assert one["decisions"]["threshold"] == 0.5
        assert one["decisions"] == one["reference"]["decisions"]
        assert [cell["positives"] for cell in one["decisions"]["classes"]] == [4]
        assert 0 <= one["decisions"]["auc"] <= 1


def write_table() -> Path:
    table = Path("labels.csv")
    rows = [
        f"{folder}/{n}.png,{n % 2},{int(folder == 'yes')},{int(n == 3)}"
        for folder in ("no", "yes")
        for n in range(4)
    ]
    table.write_text("\n".join(rows))
    return table


def test_several_labels_are_in_a_table() -> None:
    table = write_table()
    paths = [exported(3, tail=tail).path for tail in ("logits", "sigmoid", "softmax")]
    found = evaluate_artifacts(paths, images="val", targets=table, threshold=0.4)
    bare, shares, other = evaluate_values(found)["results"]
    assert bare["decisions"] == shares["decisions"] and bare["decisions"]["threshold"] == 0.4
    assert [one["positives"] for one in bare["decisions"]["classes"]] == [4, 4, 2]
    assert other["status"] == "not_run" and "--tail sigmoid" in other["reason"]
    assert json.dumps(evaluate_values(found))
    write_noise(*(Path("three") / name / "a.png" for name in "abc"))
    with pytest.raises(UsageError, match="a threshold decides each class by itself"):
        evaluate_artifacts(paths[:1], images="three", threshold=0.4)
    foreign = Path("foreign.onnx")
    foreign.write_bytes(paths[0].read_bytes())
    with pytest.raises(UsageError, match="a threshold decides each class by itself"):
        evaluate_artifacts([foreign], images="three", threshold=0.4)
    with pytest.raises(UsageError, match="confusion draws one class"):
        evaluate_artifacts(paths[:1], images="val", targets=table, confusion="c.png")
    with pytest.raises(MisfitError, match="nothing here can be evaluated: its tail softmax"):
        evaluate_artifacts(paths[2:], images="val", targets=table)


def test_workers_of_a_cluster_add_the_same_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker does, here: two blocks of pictures, their sums merged."""
    made, table = exported(3), write_table()
    whole = evaluate_artifacts([made.path], images="val", targets=table).results[0].accuracy
    images = labelled_set_with_targets(Path("val"), table)
    store = SimpleNamespace(get=lambda kept: kept)
    monkeypatch.setattr(_evaluate_sessions, "require", lambda name: store)
    weights = Workspace(Path("artifacts")).weights(made.require_manifest())
    sessions = _evaluate_sessions.ModelSessions((made,), weights, "ort-cpu", 8, decides=True)
    evaluate: Any = _evaluate_sessions._EvaluateBlocks(
        sessions,
        (made.path.read_bytes(), weights.read_bytes()),
        dict(zip(map(str, images.paths), images.targets, strict=True)),
        replace(images, paths=(), targets=()),
        made.require_manifest().preparation,
    )()
    names = [str(path) for path in images.paths]
    (total, _), unreadable, assumed = evaluate(names[:3])
    total.merge(evaluate(names[3:])[0][0])
    assert whole is not None and not unreadable and not assumed.lines()
    assert total.result().decisions == whole.decisions and total.result().agreement == 1


@pytest.mark.parametrize(("classes", "measure"), [(1, "AUC"), (3, "average precision")])
def test_a_budget_is_of_what_fits(classes: int, measure: str) -> None:
    made = exported(classes)
    table = None if classes == 1 else write_table()
    small = quantize_onnx(
        made.path, images="train", speed=False, max_drop=100.0, eval="val", targets=table
    )
    budget = small.require_manifest().details["budget"]
    assert (budget["measure"], budget["images"]) == (measure, 8)
    with pytest.raises(UsageError, match="threshold is about a drop"):
        quantize_onnx(made.path, images="train", threshold=0.3)


@pytest.mark.parametrize(("classes", "tail"), [(1, "logits"), (1, "sigmoid"), (3, "sigmoid")])
def test_it_is_packaged(classes: int, tail: str) -> None:
    made = exported(classes, tail=tail)
    package = package_artifact(made.path, triton="models", format="python")
    assert isinstance(package, Package)
    assert package.service.activation is Activation.SIGMOID
    step = next(folder for folder in package.folders if folder.name.endswith("_postprocess"))
    config = (step / "config.pbtxt").read_text()
    assert 'key: "activation"' in config and '"sigmoid"' in config
    assert Workspace(Path("artifacts")).artifacts()
