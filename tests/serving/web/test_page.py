"""The page at work in a browser, with onnxruntime-web: its classes are those found offline."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from t2t_deploy.commands import WebPackage, export_onnx, package_artifact, predict_images
from t2t_deploy.serving import PredictedImage

from ...report.chromium import Browser
from .conftest import Serve

DIGITS = Path(__file__).parents[2] / "digits"
READY = "Ready: give it a picture."
WAIT = """new Promise((done, failed) => {
  const end = Date.now() + 60000;
  const look = () => {
    const status = document.getElementById("status");
    const busy = document.getElementById("result").hasAttribute("aria-busy");
    const text = status.textContent;
    if (!busy && !text.startsWith("Loading") && text !== "Looking at the picture …") done(text);
    else if (Date.now() > end) failed(new Error(text));
    else setTimeout(look, 20);
  };
  setTimeout(look, 20);
})"""
GIVE = """(async () => {
  const data = new DataTransfer();
  const blob = await (await fetch("NAME")).blob();
  data.items.add(new File([blob], "picture", { type: blob.type }));
  const event = "HOW" === "paste"
    ? new ClipboardEvent("paste", { clipboardData: data })
    : new DragEvent("drop", { dataTransfer: data, bubbles: true });
  document.body.dispatchEvent(event);
  dispatchEvent(event);
})()"""
LISTED = """[...document.querySelectorAll("#classes li")].map((row) =>
  [Number(row.dataset.index), Number(row.dataset.share), row.querySelector(".name").textContent])"""


def give(browser: Browser, name: str, how: str = "drop") -> str:
    """Give the page a served picture; returns what it says at the end."""
    browser.run(GIVE.replace("NAME", name).replace("HOW", how))
    return str(browser.run(WAIT))


@pytest.fixture(scope="module")
def digits(runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> WebPackage:
    """A page of the trained digits model, with labels and an example."""
    folder = tmp_path_factory.mktemp("digits")
    options = {"checkpoint": DIGITS / "performer.pth.tar", "config": DIGITS / "performer.toml"}
    made = export_onnx(**options, workspace=folder / "artifacts")  # type: ignore[arg-type]
    (folder / "labels.txt").write_text("".join(f"digit {index}\n" for index in range(10)))
    (folder / "examples").mkdir()
    drawn(folder / "examples" / "drawn.png")
    package = package_artifact(
        made.path,
        web=folder / "page",
        ort_web=runtime,
        labels=folder / "labels.txt",
        examples=folder / "examples",
        workspace=folder / "artifacts",
    )
    assert isinstance(package, WebPackage)
    return package


def drawn(path: Path) -> None:
    pixels = np.random.RandomState(3).randint(0, 256, (50, 40, 3), np.uint8)
    Image.fromarray(pixels).resize((90, 110), Image.Resampling.BICUBIC).save(path)


def offline(package: WebPackage, picture: Path, top: int = 5) -> list[tuple[int, float]]:
    """Classes and probabilities of the packaged artifact, best first."""
    found: list[PredictedImage] = []
    predict_images(package.artifact.path, str(picture), receive=found.append, top=top)
    return [(one.index, one.probability) for one in found[0].top]


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_a_picture_gets_the_classes_that_predict_finds(
    browser: Browser, serve: Serve, digits: WebPackage, how: str
) -> None:
    browser.open(serve(digits.folder))
    assert browser.run(WAIT) == READY
    said = give(browser, "examples/drawn.png", how)
    listed = browser.run(LISTED)
    expected = offline(digits, digits.folder / "examples" / "drawn.png")
    assert [index for index, _, _ in listed] == [index for index, _ in expected]
    for (index, share, name), (_, probability) in zip(listed, expected, strict=True):
        assert abs(math.log(share) - math.log(probability)) <= 1e-4  # as of logits
        assert name == f"digit {index}"
    assert said.startswith(f"digit {expected[0][0]}, ")
    assert "ms in the model" in browser.run("document.getElementById('time').textContent")
    assert browser.complaints() == []


def test_an_example_is_classified_when_it_is_chosen(
    browser: Browser, serve: Serve, digits: WebPackage
) -> None:
    browser.open(serve(digits.folder))
    browser.run(WAIT)
    browser.click("#examples button")
    browser.run("new Promise((done) => setTimeout(done, 300))")
    assert browser.run(WAIT).startswith("digit ")


def test_nothing_is_fetched_from_elsewhere(
    browser: Browser, serve: Serve, digits: WebPackage
) -> None:
    address = serve(digits.folder)
    browser.open(address)
    browser.run(WAIT)
    give(browser, "examples/drawn.png")
    assert {url for url in browser.requests() if not url.startswith(address)} == set()


@pytest.mark.parametrize("isolated", [False, True])
def test_threads_are_used_where_the_server_sends_their_headers(
    browser: Browser, serve: Serve, digits: WebPackage, isolated: bool
) -> None:
    browser.open(serve(digits.folder, isolated=isolated))
    assert browser.run(WAIT) == READY
    hidden = browser.run("document.getElementById('threads').hidden")
    assert hidden is isolated
    facts = browser.run("document.getElementById('facts').textContent")
    assert ("1 thread" not in facts.split(", ")) is isolated
    assert give(browser, "examples/drawn.png").startswith("digit ")
    assert browser.complaints() == []


def test_what_is_no_picture_is_a_line_for_a_person(
    browser: Browser, serve: Serve, digits: WebPackage
) -> None:
    browser.open(serve(digits.folder))
    browser.run(WAIT)
    assert give(browser, "README.txt").startswith("This is no picture that the browser can read")
    assert give(browser, "examples/drawn.png").startswith("digit ")
    assert browser.complaints() == []


def _damage(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"no model")


def _damage_both(folder: Path) -> None:
    _damage(folder)
    about = json.loads((folder / "model.json").read_text())
    about["sha256"] = hashlib.sha256(b"no model").hexdigest()
    (folder / "model.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("damage", "line"),
    [(_damage, "model.onnx is not the file that was packaged."), (_damage_both, "")],
)
def test_a_model_that_does_not_load_is_a_line_for_a_person(
    browser: Browser,
    serve: Serve,
    digits: WebPackage,
    tmp_path: Path,
    damage: Callable[[Path], None],
    line: str,
) -> None:
    folder = Path(shutil.copytree(digits.folder, tmp_path / "page"))
    damage(folder)
    browser.open(serve(folder))
    said = browser.run(WAIT)
    assert said.startswith(f"The model does not load. {line}")
    assert browser.run("document.getElementById('choose').disabled") is True
    assert browser.complaints() == []


@pytest.mark.slow
@pytest.mark.parametrize("model", ["digits fp32", "digits int8", "7 fp32", "7 int8"])
def test_models_compute_in_the_browser_what_they_do_offline(
    browser: Browser, serve: Serve, runtime: Path, tmp_path: Path, model: str
) -> None:
    from t2t_deploy.commands import quantize_onnx

    data = pytest.importorskip("skimage.data")
    name, precision = model.split()
    source: dict[str, Any] = {"variant": name}
    if name == "digits":
        source = {"checkpoint": DIGITS / "performer.pth.tar", "config": DIGITS / "performer.toml"}
    made = export_onnx(**source, workspace=tmp_path / "artifacts")
    pictures = tmp_path / "examples"
    pictures.mkdir()
    for one in ("astronaut", "chelsea", "coffee", "rocket"):
        Image.fromarray(getattr(data, one)()).save(pictures / f"{one}.png")
    if precision == "int8":
        made = quantize_onnx(made.path, images=pictures, workspace=tmp_path / "artifacts")
    package = package_artifact(
        made.path,
        web=tmp_path / "page",
        ort_web=runtime,
        examples=pictures,
        workspace=tmp_path / "artifacts",
    )
    assert isinstance(package, WebPackage)
    browser.open(serve(package.folder))
    assert browser.run(WAIT) == READY
    tolerance = 1e-4 if precision == "fp32" else 6e-2
    for picture in sorted(pictures.iterdir()):
        give(browser, f"examples/{picture.name}")
        expected = offline(package, picture, top=6)
        logs = [math.log(share) for _, share in expected]
        for rank, (index, share, _) in enumerate(browser.run(LISTED)):
            assert abs(math.log(share) - logs[rank]) <= tolerance
            gaps = (abs(logs[rank] - logs[near]) for near in (rank - 1, rank + 1) if near >= 0)
            # within the tolerance two classes may change places
            assert index == expected[rank][0] or min(gaps) <= 2 * tolerance
    assert browser.complaints() == []
