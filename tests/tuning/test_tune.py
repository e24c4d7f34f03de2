"""What `tune` makes, times, picks and writes, on a tiny model."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from t2t_deploy._progress import silent
from t2t_deploy.cli._main import cli
from t2t_deploy.commands import (
    benchmark,
    evaluate_artifacts,
    load_session,
    package_artifact,
    predict_images,
)
from t2t_deploy.errors import (
    ArtifactError,
    CalibrationError,
    UnavailableError,
    UsageError,
)
from t2t_deploy.recipe import run_recipe
from t2t_deploy.tuning import Goal, Tuning, Verdict, _plan, _race
from t2t_deploy.tuning._plan import plan_ways
from t2t_deploy.workspace import BEST, Workspace, read_best, write_best

from ..needs import needs_tensorrt_rtx
from ..noise import write_noise
from ..program import finish
from .conftest import WITHOUT, tuned

DoneOnce = tuple[Path, Tuning]


class Heard:
    """Progress that is kept; step ``stop`` ends the command as Ctrl-C does."""

    def __init__(self, stop: str | None = None) -> None:
        self.steps: list[str] = []
        self.notes: list[str] = []
        self._stop = stop

    def step(self, text: str) -> None:
        self.steps.append(text)
        if self._stop is not None and self._stop in text:
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, text: str, done: int, total: int) -> None:
        pass


def test_the_fastest_that_was_timed_is_picked(done_once: DoneOnce) -> None:
    _, found = done_once
    tried = {one.name: one for one in found.files}
    assert set(tried) == {way.name for way in _plan.CPU_WAYS}
    assert found.pick is not None and found.files[0] is found.pick
    timed = [one for one in found.files if one.times is not None]
    best = min(timed, key=lambda one: one.times.ratio)  # type: ignore[union-attr]
    assert found.pick.times is not None and best.times is not None
    assert found.pick.times.ratio <= 1.02 * best.times.ratio
    for one in timed:
        assert one.error is not None and one.drop is not None and one.measure == "agreement"
        assert one.memory_bytes and one.size_bytes and one.row and one.row.speedup_vs_eager
    assert found.report is not None
    assert [row.backend for row in found.report.results].count("eager") == 1
    assert "files timed" in found.why


def test_what_lacks_a_runtime_says_what_would_be_tried_with_it(done_once: DoneOnce) -> None:
    _, found = done_once
    untried = {one.name: one.reason for one in found.files if one.verdict is Verdict.NOT_TRIED}
    assert set(untried) == {way.name for way in _plan.CPU_WAYS if way.name.startswith("openvino")}
    assert set(untried.values()) == {WITHOUT}


def test_the_pick_is_best_for_the_other_commands(done: Path, tmp_path: Path) -> None:
    workspace = Workspace(done / "artifacts")
    best = read_best(workspace.root)
    assert workspace.open(BEST).require_manifest().sha256 == best.sha256
    heard = Heard()
    seen: list[object] = []
    made = predict_images(
        BEST, done / "val", receive=seen.append, workspace=workspace, progress=heard
    )
    assert (made.backend, len(seen)) == (best.backend, 8)
    assert any(note.startswith(f"{BEST} is ") for note in heard.notes)
    write_best(workspace.root, dataclasses.replace(best, backend="eager"))
    with load_session(BEST, workspace=workspace) as session:
        assert session.backend == "eager", "where it was picked in, not the default"
    with load_session(BEST, backend="ort-cpu", workspace=workspace) as session:
        assert session.backend == "ort-cpu"
    write_best(workspace.root, dataclasses.replace(best, backend="openvino"))
    with pytest.raises(UnavailableError, match=r"backend openvino cannot run here: openvino is"):
        evaluate_artifacts([BEST], images=done / "val", workspace=workspace)
    write_best(workspace.root, best)
    package = package_artifact(BEST, triton=tmp_path / "models", workspace=workspace)
    assert package.artifact.path == workspace.open(BEST).path
    rows = benchmark([BEST], backend=best.backend, rounds=5, workspace=workspace).report.results
    assert [row.status.value for row in rows] == ["ok"]


def test_a_pick_that_is_gone_or_made_anew_is_refused(done: Path) -> None:
    workspace = Workspace(done / "artifacts")
    path = workspace.root / "tune" / "best.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(kept | {"sha256": "0" * 64}))
    with pytest.raises(ArtifactError, match="tune again"):
        workspace.open(BEST)
    path.write_text("{")
    with pytest.raises(ArtifactError, match=r"cannot be read .*tune again"):
        workspace.open(BEST)
    path.unlink()
    with pytest.raises(ArtifactError, match="t2t-deploy tune picks it"):
        workspace.open(BEST)


def test_the_recipe_makes_the_pick_from_nothing(done: Path, tmp_path: Path) -> None:
    best = read_best(done / "artifacts")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    recipe = Path(shutil.copy(done / "artifacts" / "tune" / "best.toml", elsewhere))
    # the paths in it are those of the folder that was tuned
    made = run_recipe(recipe, workspace=elsewhere / "artifacts")
    assert made.exit_status == 0
    hashes = [
        one.require_manifest().sha256 for one in Workspace(elsewhere / "artifacts").artifacts()
    ]
    assert best.sha256 in hashes
    again = run_recipe(done / "artifacts" / "tune" / "best.toml", workspace=done / "artifacts")
    assert {step.status.value for step in again.steps} <= {"done", "skipped"}


def test_nothing_is_done_twice(done: Path) -> None:
    before = sorted((done / "artifacts" / "onnx").iterdir())
    heard = Heard()
    again = tuned(done, config=done / "tiny.toml", progress=heard)
    assert any("timed before" in note for note in heard.notes)
    assert not any("round" in step for step in heard.steps)
    assert sorted((done / "artifacts" / "onnx").iterdir()) == before
    assert again.pick is not None and again.pick.artifact is not None
    assert again.pick.artifact.require_manifest().sha256 == read_best(done / "artifacts").sha256
    heard = Heard()
    tuned(done, again=True, progress=heard)
    assert any("round 1 of" in step for step in heard.steps)


def test_a_killed_tune_goes_on_where_it_stopped(folder: Path, without_openvino: None) -> None:
    with pytest.raises(KeyboardInterrupt):
        tuned(folder, progress=Heard("quantize cpu-int8: verifying"))
    heard = Heard("round 4 of")
    with pytest.raises(KeyboardInterrupt):
        tuned(folder, progress=heard)
    assert any("export cpu-fp32: skipped" in note for note in heard.notes)
    heard = Heard()
    found = tuned(folder, progress=heard)
    assert any("going on after 3 rounds" in note for note in heard.notes)
    assert not any("round 3 of" in step for step in heard.steps)
    assert found.pick is not None and found.pick.row is not None
    assert len(found.pick.row.rounds) >= 5
    numbers = [one.number for one in found.pick.row.rounds]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.slow
def test_a_damaged_race_is_run_anew(done: Path) -> None:
    (kept,) = (done / "artifacts" / "tune").glob("race-*.json")
    kept.write_text('{"report": 3, "rows": []}')
    heard = Heard()
    assert tuned(done, progress=heard).pick is not None
    assert any("round 1 of" in step for step in heard.steps)


def test_a_budget_that_nothing_keeps(done: Path) -> None:
    best = (done / "artifacts" / "tune" / "best.json").read_text()
    found = tuned(done, max_error=1e-12)
    assert found.pick is None and found.nearest is not None
    assert found.nearest.name.startswith("cpu-fp32")
    errors = [one.error for one in found.files if one.error is not None]
    assert found.nearest.error == min(errors)
    assert found.nearest.name in found.why and "1e-12 may be" in found.why
    assert (done / "artifacts" / "tune" / "best.json").read_text() == best
    words = ["tune", "--config", str(done / "tiny.toml"), "--max-error", "1e-12", "--json"]
    words += ["--eval", str(done / "val"), "--images", str(done / "train"), "--threads", "1"]
    result = CliRunner().invoke(
        cli, [*words, "--workspace", str(done / "artifacts")], standalone_mode=False
    )
    assert result.return_value == 3
    shown = json.loads(result.stdout)
    assert shown["pick"] is None and shown["nearest"]["name"] == found.nearest.name


def test_layers_go_back_to_float_where_too_much_is_lost(
    done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()
    found = tuned(done, max_drop=0.0, max_error=1.0, progress=heard)
    lost = [one.name for one in found.files if one.verdict is Verdict.OVER_BUDGET]
    assert found.pick is not None and found.pick.drop == 0.0
    for name in lost:
        assert f"{name}-within" in {one.name for one in found.files}


def test_what_time_leaves_out_is_said(folder: Path, without_openvino: None) -> None:
    found = tuned(folder, within=0.001)
    late = [one.name for one in found.files if "no time left" in (one.reason or "")]
    assert late and found.pick is not None, "the first is made and timed all the same"
    assert "--within" in str(next(one.reason for one in found.files if one.name == late[0]))


@pytest.mark.parametrize("goal", [Goal.SIZE, pytest.param(Goal.MEMORY, marks=pytest.mark.slow)])
def test_other_goals(done: Path, goal: Goal) -> None:
    found = tuned(done, goal=goal)
    assert found.pick is not None
    figures = {
        one.name: one.size_bytes if goal is Goal.SIZE else one.memory_bytes
        for one in found.files
        if one.times is not None
    }
    best = min(value for value in figures.values() if value is not None)
    assert figures[found.pick.name] is not None
    assert figures[found.pick.name] <= 1.02 * best  # type: ignore[operator]


def test_throughput_tries_several_streams(done: Path) -> None:
    found = tuned(done, goal="throughput", threads=2, batch=2)
    streams = {(one.name, one.streams) for one in found.files if one.times is not None}
    assert ("cpu-int8", 1) in streams and ("cpu-int8", 2) in streams
    assert found.pick is not None and found.pick.row is not None
    assert read_best(done / "artifacts").streams == found.pick.streams


def test_pictures_to_judge_on_must_be_others(folder: Path) -> None:
    with pytest.raises(CalibrationError, match=r"0\.png"):
        tuned(folder, eval=folder / "train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": None}, "nothing says which model to tune"),
        ({"eval": None, "max_drop": 1.0}, "max-drop is about the pictures of eval"),
        ({"eval": None, "threshold": 0.5}, "threshold is about the pictures of eval"),
        ({"device": "cuda:0", "sm": "89"}, "give one of them"),
        ({"sm": "89", "goal": "memory"}, "nothing runs"),
        ({"max_error": -1.0}, "max_error is -1.0; expected a number of at least 0"),
        ({"within": 0}, "within is 0; expected a number of minutes above 0"),
        ({"device": "gpu"}, "device is 'gpu'; expected 'cpu', 'cuda:0'"),
    ],
)
def test_options_that_make_no_sense(folder: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tuned(folder, **options)
    assert not (folder / "artifacts" / "onnx").exists()


def test_without_pictures_there_are_no_static_ranges() -> None:
    plan = plan_ways({"model": {}}, sm=None, device=None, batch=1, has_images=False)
    static = {way.name for way in _plan.CPU_WAYS if way.ranged}
    assert static <= plan.not_tried.keys()
    assert all("--images" in plan.not_tried[name] for name in static)
    assert "cpu-int8" in {way.name for way in plan.ways}


def test_a_recipe_of_one_file_has_what_it_goes_through_alone() -> None:
    shared = {"model": {"variant": "7"}, "calibrate": {"images": "train"}}
    plan = plan_ways(shared, sm="89", device=None, batch=4, has_images=True)
    tables = plan.tables(["engine-fp8"])
    assert [one["name"] for one in tables["export"]] == ["tensorrt-fp16"]
    assert [one["type"] for one in tables["quantize"]] == ["fp8"]
    assert tables["build-trt"][0]["sm"] == "89" and "calibrate" in tables
    assert "calibrate" not in plan.tables(["engine-fp16"])
    assert all(way.command == "build-trt" for way in plan.ways)


def test_preset_preparations_stay_words_and_files_become_absolute(
    folder: Path, without_openvino: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    found = tuned(Path(), preparation="cifar", eval=None, images=None)
    assert found.recipe is not None
    text = found.recipe.read_text()
    assert 'preparation = "cifar"' in text and f'config = "{folder}' in text
    manifest = found.pick.artifact.require_manifest()  # type: ignore[union-attr]
    assert manifest.details["preparation_source"] == "cifar"


def test_a_file_of_ours_changes_no_verdict_of_another_goal(done_once: DoneOnce) -> None:
    _, found = done_once
    by_time = sorted(
        (one for one in found.files if one.times is not None),
        key=lambda one: one.times.ratio,  # type: ignore[union-attr]
    )
    for one in by_time:
        better = [
            other
            for other in by_time
            if other.times.ratio < one.times.ratio  # type: ignore[union-attr]
            and other.error <= one.error  # type: ignore[operator]
        ]
        if one is not found.pick:
            assert (one.verdict is Verdict.BEATEN) == bool(better)


def test_the_page_shows_the_files(done_once: DoneOnce) -> None:
    _, found = done_once
    assert found.page is not None
    page = found.page.read_text()
    assert "Which file to ship" in page and WITHOUT.replace("'", "&#39;") in page
    assert all(one.name in page for one in found.files)


@pytest.mark.slow
def test_all_runtimes(folder: Path) -> None:
    found = tuned(folder, progress=silent)
    made = [one.name for one in found.files if one.artifact is not None]
    assert {"openvino-fp32", "openvino-int8", "cpu-int8"} <= set(made)
    paths = [one.artifact.path for one in found.files if one.artifact is not None]
    assert len(set(paths)) == len(paths), "a file for each"


def test_json_has_the_words_of_the_contract(done_once: DoneOnce) -> None:
    _, found = done_once
    values = found.to_dict()
    assert values["goal"] == "latency" and values["pick"]["verdict"] == "pick"
    assert values["files"][0] == values["pick"]
    assert {"name", "verdict", "error", "drop", "times_fastest", "size_bytes"} <= values[
        "pick"
    ].keys()
    json.dumps(values, allow_nan=False)


def test_a_race_without_time_still_has_an_interval(
    folder: Path, without_openvino: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_race, "MOST_ROUNDS", 15)
    found = tuned(folder, within=0.001, images=None, eval=None)
    assert found.report is not None
    assert {len(row.rounds) for row in found.report.results} == {5}


def test_pictures_that_cannot_be_read_are_no_reason_to_stop(
    done: Path,
) -> None:
    (done / "val" / "broken.png").write_bytes(b"no picture")
    write_noise(done / "val" / "more.png", seed=300)
    found = tuned(done)
    assert found.pick is not None and found.pick.drop is not None


def test_results_are_values(done_once: DoneOnce) -> None:
    _, found = done_once
    assert found.pick is not None
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.pick.name = "other"  # type: ignore[misc]


@pytest.mark.slow
@needs_tensorrt_rtx
def test_engines_are_ranked_by_their_builder_where_no_gpu_is(folder: Path) -> None:
    found = tuned(folder, sm="89", max_error=1.0)
    made = {one.name: one for one in found.files if one.artifact is not None}
    assert {"engine-fp16", "engine-int8"} <= made.keys()
    assert found.pick is not None and found.report is None
    assert "nothing was timed" in found.why
    moved = {name: one.to_dict()["engine"]["moved_bytes"] for name, one in made.items()}
    assert moved[found.pick.name] <= 1.02 * min(
        moved[name] for name, one in made.items() if one.verdict is not Verdict.OVER_BUDGET
    )
    # errors are of the graphs, in ONNX Runtime, which has no bf16
    assert made["engine-int8"].drop is not None and made["engine-bf16"].drop is None
    assert found.recipe is not None and 'sm = "89"' in found.recipe.read_text()


@pytest.mark.gpu
def test_what_runs_on_a_gpu_is_timed_there(folder: Path) -> None:
    found = tuned(folder, device="cuda:0", max_error=1.0)
    assert found.pick is not None and found.pick.times is not None
    assert read_best(folder / "artifacts").device == 0


def test_a_gpu_that_is_not_here_leaves_its_files_untried() -> None:
    plan = plan_ways({"model": {}}, sm=None, device=0, batch=1, has_images=True)
    known = {way.name for way in plan.ways} | plan.not_tried.keys()
    assert {"cuda-fp16", "cuda-fp32", "engine-fp16", "engine-int8"} <= known


def test_the_commands_help_loads_no_framework() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from t2t_deploy.cli import main; "
        "sys.argv = ['t2t-deploy', 'tune', '--help']; main()"
    )
    done = finish(code=code)
    assert done.status == 0 and "--max-drop" in done.out, done.err
