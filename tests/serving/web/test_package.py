"""What `package --web` writes, refuses and replaces; no browser is needed."""

from __future__ import annotations

import functools
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from t2t_deploy import graph
from t2t_deploy._files import TEMPORARY, file_sha256, machine_id
from t2t_deploy.commands import WebPackage, _package, export_onnx, package_artifact
from t2t_deploy.errors import ArtifactError, CheckFailed, UsageError
from t2t_deploy.runtime import SessionRequest, open_session
from t2t_deploy.serving.web import read_runtime
from t2t_deploy.workspace import Artifact

from ...small import TINY
from ...web_runtime import FILES, VERSION, write_runtime

Export = Callable[..., Artifact]
Make = Callable[..., WebPackage]
PAGE = {"index.html", "page.js", "prepare.js", "page.css", "icon.svg", "README.txt"}
MADE = {"model.onnx", "model.json", "t2t-deploy.json", *(f"runtime/{name}" for name in FILES)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """The tiny model in a form, each exported once."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("exported")
    (folder / "tiny.toml").write_text(TINY)
    known: dict[str, Any] = {"config": folder / "tiny.toml", "workspace": folder / "artifacts"}
    return functools.cache(lambda **form: export_onnx(**known, **form))


@pytest.fixture
def package(exported: Export, tmp_path: Path) -> Make:
    """Package the tiny model, or another artifact, into ``tmp_path/here/page``."""
    runtime = write_runtime(tmp_path / "runtime")
    (tmp_path / "here").mkdir()

    def make(artifact: Artifact | None = None, **options: Any) -> WebPackage:
        usual = {"web": tmp_path / "here" / "page", "ort_web": runtime}
        source = (artifact or exported()).path
        made = package_artifact(source, **usual | options, workspace=tmp_path / "artifacts")
        assert isinstance(made, WebPackage)
        return made

    return make


def about(made: WebPackage) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((made.folder / "model.json").read_text())
    return found


def written(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_every_file_of_a_page(package: Make, exported: Export, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"class {index}\n" for index in range(10)))
    (tmp_path / "examples").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "examples" / "black.png")
    before = file_sha256(exported().path)
    made = package(labels=labels, examples=tmp_path / "examples", name="mine")
    assert written(made.folder) == PAGE | MADE | {"examples/black.png"}
    found = about(made)
    (model,) = found["models"]
    assert model["sha256"] == file_sha256(made.folder / "model.onnx") != before
    assert (found["name"], model["precision"], model["tolerance"]) == ("mine", "fp32", 1e-5)
    assert (model["shape"], found["labels"][9]) == ([1, 32, 32, 3], "class 9")
    assert found["runtime"] == {"version": VERSION, "script": "runtime/ort.wasm.min.mjs"}
    assert (found["examples"], found["preparation"]["box"]) == (["examples/black.png"], [35, 35])
    assert file_sha256(exported().path) == before
    readme = (made.folder / "README.txt").read_text()
    assert "Cross-Origin-Opener-Policy: same-origin" in readme
    assert "Cross-Origin-Embedder-Policy: require-corp" in readme
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["page"]


def test_the_page_allows_its_own_files_alone(package: Make) -> None:
    page = (package().folder / "index.html").read_text()
    policy = page.split('content="')[1].split('"')[0].split("; ")
    assert policy[0] == "default-src 'none'"
    sources = {word for rule in policy for word in rule.split()[1:]}
    assert sources == {"'none'", "'self'", "'wasm-unsafe-eval'"}
    assert "://" not in page and " style=" not in page and " onclick" not in page


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"embed_preprocess": True},
        {"tail": "softmax"},
        {"embed_preprocess": True, "tail": "softmax"},
        {"tail": "topk", "batch": 1},
    ],
    ids=str,
)
def test_the_page_s_model_takes_pixels_and_gives_the_best_classes(
    package: Make, exported: Export, form: dict[str, Any]
) -> None:
    made = package(exported(**form))
    (derived,) = made.page.models
    assert derived.derived
    assert any("were added for the page" in note for note in made.notes)
    model = onnx.load(made.folder / "model.onnx")
    assert [one.name for one in model.graph.output] == ["probabilities", "indices"]
    pixels = np.random.RandomState(0).randint(0, 256, (1, 32, 32, 3), np.uint8)
    with open_session(SessionRequest("ort-cpu", made.folder / "model.onnx")) as session:
        found = session.run({"image": pixels})
    with open_session(SessionRequest("ort-cpu", exported().path)) as session:
        normalised = derived.signature.preparation.normalise(pixels)
        (logits,) = session.run({"image": normalised})["logits"]
    assert found["indices"][0].tolist() == np.argsort(-logits)[:5].tolist()


def test_an_artifact_of_that_form_is_taken_as_it_is(package: Make, exported: Export) -> None:
    artifact = exported(embed_preprocess=True, tail="topk")
    made = package(artifact)
    assert not made.page.models[0].derived
    assert file_sha256(made.folder / "model.onnx") == file_sha256(artifact.path)


def test_two_files_of_a_model_lie_in_one_page(package: Make, exported: Export) -> None:
    as_it_is = exported(embed_preprocess=True, tail="topk")
    made = package(second=as_it_is.path)
    assert written(made.folder) == PAGE | MADE | {"model2.onnx"}
    first, second = about(made)["models"]
    assert (first["file"], second["file"]) == ("model.onnx", "model2.onnx")
    assert second["sha256"] == file_sha256(as_it_is.path) != first["sha256"]
    assert about(made)["name"] == "t2t_vit_tiny"
    assert "model2.onnx   the model in fp32" in (made.folder / "README.txt").read_text()


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ({}, "is the same file as"),
        ({"crop_fraction": 0.5, "batch": 1}, "is of another model than"),
        ({"precision": "fp16"}, "no page can be made of .*: it is fp16"),
    ],
    ids=str,
)
def test_a_second_file_that_does_not_suit_is_refused(
    package: Make, exported: Export, form: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ArtifactError, match=reason):
        package(second=exported(**form).path)


def test_a_model_that_is_not_the_same_fell_short(
    package: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = graph.with_graph_io

    def wrong(model: Any, graph_io: Any, preparation: Any) -> Any:
        return real(model, graph_io, preparation.changed({"mean": [0.4] * 3}, channels=3))

    monkeypatch.setattr(graph, "with_graph_io", wrong, raising=False)
    with pytest.raises(CheckFailed, match="is not the same model: relative error"):
        package()
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ({"tail": "sigmoid"}, "it decides each class by itself"),
        ({"tail": "embedding"}, "it gives embedding and no classes"),
        ({"batch": 4}, "it takes 4 pictures at a time"),
        ({"precision": "fp16"}, "it is fp16, which browsers do not compute"),
    ],
    ids=str,
)
def test_a_model_that_no_page_shows_is_refused(
    package: Make, exported: Export, form: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ArtifactError, match=f"no page can be made of .*: {reason}"):
        package(exported(**form))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"triton": "m"}, "both are given"),
        ({"web": None, "ort_web": None}, "neither is given"),
        ({"web": None, "triton": "m"}, "--ort-web is for --web; leave it out"),
        (
            {"second": "b.onnx", "triton": "m", "web": None, "ort_web": None},
            "a second file is for -",
        ),
        ({"max_batch": 8}, "--max-batch is for --triton; leave it out"),
        ({"top": 3}, "--top is for --triton; leave it out"),
    ],
    ids=str,
)
def test_options_of_the_other_package_are_refused(
    package: Make, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        package(**options)


def test_our_own_folder_is_replaced_and_others_never(package: Make, tmp_path: Path) -> None:
    assert package().notes == package(name="second").notes[:-1]
    assert package().notes[-1] == "replaced page"
    (tmp_path / "here/page/index.html").write_text("mine")
    with pytest.raises(
        ArtifactError, match=r"was changed after .* \(index.html\); .* another folder"
    ):
        package()
    with pytest.raises(ArtifactError, match="is there and not made by t2t-deploy package"):
        package(web=tmp_path / "here")


def test_a_folder_that_a_killed_command_moved_out_is_back(package: Make, tmp_path: Path) -> None:
    package()
    # of a process that is gone
    left = tmp_path / "here" / f"{TEMPORARY}{machine_id()}-{2**31 - 1}-left"
    (left / "old").mkdir(parents=True)
    (left / "repository.txt").write_text(".")
    (tmp_path / "here/page").rename(left / "old" / "page")
    assert package().notes[-1] == "replaced page"
    assert not left.exists()


def test_a_large_model_is_warned_of(package: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_package, "LARGE_BYTES", 10)
    assert any("slow over a network" in note for note in package().notes)


def test_without_the_runtime_a_line_says_how_to_get_it(
    package: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match="make web-runtime brings it") as caught:
        package(ort_web=None)
    assert "\n" not in str(caught.value)


def test_the_runtime_of_make_is_taken_and_said(
    package: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "build/web-runtime").mkdir(parents=True)
    with tarfile.open(tmp_path / f"build/web-runtime/onnxruntime-web-{VERSION}.tgz", "w:gz") as tgz:
        tgz.add(tmp_path / "runtime", "package")
    made = package(ort_web=None)
    assert f"the page runs onnxruntime-web {VERSION}, of build/web-runtime" in made.notes
    assert (made.folder / "runtime" / FILES[0]).read_text() == FILES[0]


def test_another_package_is_no_runtime(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is the npm package 'left-pad'"):
        read_runtime(write_runtime(tmp_path / "other", "left-pad"))


@pytest.mark.parametrize("lacking", ["package.json", "dist/ort.wasm.min.mjs"])
def test_an_incomplete_runtime_is_refused(tmp_path: Path, lacking: str) -> None:
    runtime = write_runtime(tmp_path / "runtime")
    (runtime / lacking).unlink()
    with pytest.raises(ArtifactError, match="is no npm package of onnxruntime-web"):
        read_runtime(runtime)
    (tmp_path / "file.tgz").write_bytes(b"no tarball")
    with pytest.raises(ArtifactError, match="is no npm package of onnxruntime-web"):
        read_runtime(tmp_path / "file.tgz")
