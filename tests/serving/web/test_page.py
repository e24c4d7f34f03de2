"""The page at work in a browser, with onnxruntime-web: its classes are those found offline."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from t2t_deploy._files import file_sha256
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
  const blobs = [];
  for (const name of NAMES) blobs.push(await (await fetch(name)).blob());
  for (const blob of blobs) {
    const data = new DataTransfer();
    data.items.add(new File([blob], "picture", { type: blob.type }));
    dispatchEvent("HOW" === "paste"
      ? new ClipboardEvent("paste", { clipboardData: data })
      : new DragEvent("drop", { dataTransfer: data }));
  }
})()"""
LISTED = """[...document.querySelectorAll("#classes li")].map((row) =>
  [Number(row.dataset.index), Number(row.dataset.share), row.querySelector(".name").textContent])"""


def until(browser: Browser, script: str) -> None:
    """Wait until a JavaScript expression holds."""
    poll = "new Promise((done) => setTimeout(done, 20))"
    loop = f"const end = Date.now() + 20000; while (!({script}) && Date.now() < end) await {poll};"
    assert browser.run(f"(async () => {{ {loop} return Boolean({script}); }})()"), script


def give(browser: Browser, *names: str, how: str = "drop") -> str:
    """Give the page served pictures, one at once after the other; returns what it says at last."""
    browser.run(GIVE.replace("NAMES", json.dumps(names)).replace("HOW", how))
    return str(browser.run(WAIT))


@pytest.fixture(scope="module")
def digits(runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> WebPackage:
    """A page of the trained digits model, with labels and an example."""
    folder = tmp_path_factory.mktemp("digits")
    options = {"checkpoint": DIGITS / "performer.pth.tar", "config": DIGITS / "performer.toml"}
    made = export_onnx(**options, workspace=folder / "artifacts")  # type: ignore[arg-type]
    (folder / "labels.txt").write_text("".join(f"digit {index}\n" for index in range(10)))
    (folder / "examples").mkdir()
    drawn(folder / "examples" / "drawn.png", 3)
    drawn(folder / "examples" / "other.png", 4)
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


def drawn(path: Path, seed: int) -> None:
    pixels = np.random.RandomState(seed).randint(0, 256, (50, 40, 3), np.uint8)
    Image.fromarray(pixels).resize((90, 110), Image.Resampling.BICUBIC).save(path)


def offline(package: WebPackage, picture: Path, top: int = 5) -> list[tuple[int, float]]:
    """Classes and probabilities of the packaged artifact, best first."""
    found: list[PredictedImage] = []
    predict_images(package.artifact.path, str(picture), receive=found.append, top=top)
    return [(one.index, one.probability) for one in found[0].top]


@pytest.fixture(scope="module")
def two(digits: WebPackage, runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with the model in fp32 and in int8."""
    from t2t_deploy.commands import quantize_onnx

    folder = tmp_path_factory.mktemp("two")
    usual: dict[str, Any] = {"workspace": digits.artifact.path.parents[1]}
    int8 = quantize_onnx(digits.artifact.path, mode="dynamic", speed=False, **usual)
    examples = digits.folder / "examples"
    options: dict[str, Any] = {"ort_web": runtime, "examples": examples, **usual}
    package_artifact(digits.artifact.path, int8.path, web=folder / "page", **options)
    return folder / "page"


def slow(page: Path, number: int) -> None:
    """Make one of a page's models slow, by products that its classes need and do not show."""
    import onnx
    from onnx import helper, numpy_helper

    about = json.loads((page / "model.json").read_text())
    path = page / about["models"][number]["file"]
    model = onnx.load(path)
    for name, value in (("ones", np.full((800, 800), 1 / 800)), ("none", np.zeros(1))):
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    (image,) = model.graph.input
    steps: list[tuple[str, list[str], dict[str, Any]]] = [("Cast", [image.name], {"to": 1})]
    steps += [("ReduceMean", ["s0"], {"keepdims": 0})]
    steps += [("Mul", ["s1", "ones"], {}), ("MatMul", ["s2", "s2"], {}), ("MatMul", ["s3"] * 2, {})]
    steps += [("ReduceMax", ["s4"], {"keepdims": 0}), ("Mul", ["s5", "none"], {})]
    steps += [("Add", ["quick", "s6"], {})]
    for node in model.graph.node:
        node.output[:] = ["quick" if one == "probabilities" else one for one in node.output]
        node.input[:] = ["quick" if one == "probabilities" else one for one in node.input]
    for place, (kind, names, options) in enumerate(steps):
        found = f"s{place}" if place < len(steps) - 1 else "probabilities"
        model.graph.node.append(helper.make_node(kind, names, [found], **options))
    onnx.save(model, path)
    about["models"][number]["sha256"] = file_sha256(path)
    (page / "model.json").write_text(json.dumps(about))


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_a_picture_gets_the_classes_that_predict_finds(
    browser: Browser, serve: Serve, digits: WebPackage, how: str
) -> None:
    browser.open(serve(digits.folder))
    assert browser.run(WAIT) == READY
    said = give(browser, "examples/drawn.png", how=how)
    listed = browser.run(LISTED)
    expected = offline(digits, digits.folder / "examples" / "drawn.png")
    assert [index for index, _, _ in listed] == [index for index, _ in expected]
    for (index, share, name), (_, probability) in zip(listed, expected, strict=True):
        assert abs(math.log(share) - math.log(probability)) <= 1e-4  # as of logits
        assert name == f"digit {index}"
    assert said.startswith(f"digit {expected[0][0]}, ")
    assert "ms in the model" in browser.run("document.getElementById('time').textContent")
    assert browser.complaints() == []


def test_of_pictures_given_at_once_the_newest_is_shown(
    browser: Browser, serve: Serve, digits: WebPackage
) -> None:
    browser.open(serve(digits.folder))
    names = ["examples/drawn.png", "README.txt", "examples/other.png"]
    give(browser, *names)  # while the model loads
    expected = dict(offline(digits, digits.folder / names[-1]))
    for _ in range(2):
        shares = {index: share for index, share, _ in browser.run(LISTED)}
        assert shares == pytest.approx(expected, rel=1e-3)
        give(browser, *names)  # while one is looked at
    assert browser.complaints() == []


@pytest.mark.parametrize(("late", "taken"), [(0, "int8"), (1, "fp32")])
def test_the_faster_model_is_taken_and_the_other_can_be_chosen(
    browser: Browser, serve: Serve, two: Path, tmp_path: Path, late: int, taken: str
) -> None:
    page = Path(shutil.copytree(two, tmp_path / "page"))
    slow(page, late)
    browser.open(serve(page))
    assert browser.run(WAIT) == READY
    assert browser.run("document.getElementById('models').hidden") is True
    give(browser, "examples/drawn.png")
    why = browser.run("document.getElementById('why').textContent")
    found = re.fullmatch(r"The faster .* here: fp32 (\d+) ms, int8 (\d+) ms\.", why)
    assert found and (int(found[1]) > int(found[2])) is (taken == "int8")
    facts = "document.getElementById('facts').textContent"
    assert browser.run(facts).startswith(f"{taken}, ")
    before = browser.run(LISTED)
    other = int(taken == "fp32")
    browser.run(
        f"(() => {{ const e = document.getElementById('model'); e.selectedIndex = {other};"
        " e.dispatchEvent(new Event('change')); })()"
    )
    browser.run(WAIT)
    assert browser.run(facts).startswith(f"{'int8' if other else 'fp32'}, ")
    after = browser.run(LISTED)
    assert before != after and before[0][0] == after[0][0]
    assert browser.complaints() == []


def test_an_example_is_classified_when_it_is_chosen(
    browser: Browser, serve: Serve, digits: WebPackage
) -> None:
    browser.open(serve(digits.folder))
    browser.run(WAIT)
    browser.click("#examples button")
    until(browser, "document.querySelector('#classes li')")
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


def test_without_webassembly_a_line_says_so(
    browser: Browser, serve: Serve, digits: WebPackage
) -> None:
    script = "delete globalThis.WebAssembly"
    added = browser.call("Page.addScriptToEvaluateOnNewDocument", source=script)
    browser.open(serve(digits.folder))
    browser.call("Page.removeScriptToEvaluateOnNewDocument", **added)
    said = "The model does not load. This browser has no WebAssembly, or it is switched off."
    assert browser.run(WAIT) == said
    assert browser.complaints() == []


def allow_camera(browser: Browser, address: str, setting: str) -> None:
    name = {"name": "camera"}
    browser.call("Browser.setPermission", permission=name, setting=setting, origin=address)


def test_the_camera_s_picture_is_classified(
    browser: Browser, serve: Serve, digits: WebPackage
) -> None:
    address = serve(digits.folder)
    allow_camera(browser, address, "granted")
    browser.open(address)
    browser.run(WAIT)
    browser.click("#camera")
    until(browser, "document.getElementById('camera').textContent === 'Take the picture'")
    browser.click("#camera")
    until(browser, "document.getElementById('video').hidden")
    until(browser, "document.querySelector('#classes li')")
    assert browser.run(WAIT).startswith("digit ")
    assert browser.run("document.getElementById('video').srcObject") is None
    assert browser.complaints() == []


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("0", "The camera was not allowed: allow it beside the page's address."),
        (
            "navigator.mediaDevices.getUserMedia = async () => {"
            " throw new DOMException('', 'NotFoundError'); }; 0",
            "No camera was found on this machine.",
        ),
        (
            "Object.defineProperty(navigator, 'mediaDevices', { value: undefined }); 0",
            "A camera needs https or localhost.",
        ),
    ],
    ids=["refused", "absent", "no https"],
)
def test_without_a_camera_a_line_says_why(
    browser: Browser, serve: Serve, digits: WebPackage, script: str, line: str
) -> None:
    address = serve(digits.folder)
    allow_camera(browser, address, "denied")
    browser.open(address)
    browser.run(WAIT)
    browser.run(script)
    browser.click("#camera")
    until(browser, f"document.getElementById('status').textContent === {json.dumps(line)}")
    assert give(browser, "examples/drawn.png").startswith("digit ")
    assert browser.complaints() == []


def test_everything_is_reached_and_done_with_keys(
    browser: Browser, serve: Serve, two: Path
) -> None:
    browser.open(serve(two))
    browser.run(WAIT)
    give(browser, "examples/drawn.png")
    browser.run("scrollTo(0, 0); document.activeElement.blur()")
    focus = """(() => { const e = document.activeElement;
      return [e.id || e.firstChild.alt, getComputedStyle(e).outlineStyle,
        e.getBoundingClientRect().height]; })()"""
    found = []
    for _ in range(5):
        browser.press("Tab")
        found.append(browser.run(focus))
    assert [name for name, _, _ in found] == [
        *("choose", "camera", "Example drawn", "Example other", "model")
    ]
    assert {outline for _, outline, _ in found} == {"solid"}
    assert min(height for _, _, height in found) >= 44
    browser.call("Page.setInterceptFileChooserDialog", enabled=True)
    for key in ("Enter", " "):
        browser.run("document.getElementById('choose').focus()")
        browser.events.clear()
        browser.press(key)
        opened = "Page.fileChooserOpened"
        while not any(event["method"] == opened for event in browser.events):
            browser.run("new Promise((done) => setTimeout(done, 20))")
        shown = json.dumps(browser.run(LISTED))
        browser.run(f"document.querySelectorAll('#examples button')[{int(key == 'Enter')}].focus()")
        browser.press(key)
        until(browser, f"JSON.stringify({LISTED}) !== JSON.stringify({shown})")
    browser.call("Page.setInterceptFileChooserDialog", enabled=False)


def test_a_screen_reader_hears_the_result_and_the_name_of_each_control(
    browser: Browser, serve: Serve, two: Path
) -> None:
    browser.open(serve(two))
    browser.run(WAIT)
    give(browser, "examples/drawn.png")
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    named = {
        (node["role"]["value"], node["name"]["value"])
        for node in nodes
        if not node["ignored"] and "name" in node
    }
    for control in ("button", "combobox", "image", "list"):
        assert "" not in [name for role, name in named if role == control]
    assert ("combobox", "Model") in named and ("list", "Best classes") in named
    assert ("image", "The picture that was classified") in named
    (status,) = [node for node in nodes if node["role"]["value"] == "status"]
    live = {one["name"]: one["value"]["value"] for one in status["properties"]}
    assert live["live"] == "polite"
    spoken = [node["name"]["value"] for node in nodes if node.get("parentId") == status["nodeId"]]
    assert spoken == [browser.run("document.getElementById('status').textContent")]


CONTRASTS = """(() => {
  const light = (text) => {
    const [r, g, b] = text.match(/\\d+/g).map((v) => (v /= 255) <= 0.04045 ? v / 12.92
      : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (e) => {
    const found = getComputedStyle(e).backgroundColor;
    return /, 0\\)/.test(found) ? behind(e.parentElement) : found;
  };
  document.getElementById("status").classList.toggle("bad");
  return ["h1", "#facts", "#status", "#time", "#why", "button", "select", ".name", "footer p"].map(
    (one) => {
      const e = document.querySelector(one);
      const [a, b] = [getComputedStyle(e).color, behind(e)].map(light).sort((x, y) => y - x);
      return [one, (a + 0.05) / (b + 0.05)];
    });
})()"""


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 360])
def test_text_is_read_in_the_light_in_the_dark_and_on_a_phone(
    browser: Browser, serve: Serve, two: Path, dark: bool, width: int
) -> None:
    browser.open(serve(two), width=width, dark=dark)
    browser.run(WAIT)
    give(browser, "examples/drawn.png")
    for _ in range(2):  # with the status as an error, and without
        assert [(one, ratio) for one, ratio in browser.run(CONTRASTS) if ratio < 4.5] == []
    assert browser.run("document.documentElement.scrollWidth") <= width
    sides = browser.run("[...document.querySelectorAll('section')].map((e) => e.offsetTop)")
    assert (sides[0] == sides[1]) is (width == 1280)


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
        expected = offline(package, picture, top=10)
        by_class = {index: math.log(share) for index, share in expected}
        for (index, share, _), (_, best) in zip(browser.run(LISTED), expected, strict=False):
            # what stands there is that class's, and the best: near ties alone change places
            assert abs(math.log(share) - by_class[index]) <= tolerance
            assert abs(math.log(share) - math.log(best)) <= tolerance
    assert browser.complaints() == []
