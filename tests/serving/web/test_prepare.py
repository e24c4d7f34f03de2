"""The page's preparation of pictures against Pillow's, in a browser."""

from __future__ import annotations

import base64
import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2t_deploy import images
from t2t_deploy._preparation import PRESETS, Preparation
from t2t_deploy.serving.web import browser_steps

from ...report.chromium import Browser
from .conftest import Serve

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
BICUBIC = Preparation()
CASES = {
    "bicubic to 224": BICUBIC,
    "bicubic to 32": Preparation(size=(32, 32)),
    "bicubic, not square": Preparation(size=(64, 96), crop_fraction=0.875),
    "bicubic, of that side": Preparation(size=(48, 48), crop_fraction=None, resize_to=53),
    "bilinear": PRESETS["cifar"].fitted(3, (64, 64)),
    "lanczos": Preparation(interpolation="lanczos", size=(96, 96)),  # type: ignore[arg-type]
    "nearest": Preparation(interpolation="nearest", size=(96, 96)),  # type: ignore[arg-type]
    "squash": BICUBIC.changed({"resize": "squash"}, channels=3, size=(100, 60)),
    "not resized": BICUBIC.changed(
        {"resize": "none", "crop_fraction": 0.9}, channels=3, size=(20, 16)
    ),
    "greys": BICUBIC.fitted(1, (64, 64)),
}
PREPARE = """(async () => {
  const { decoded, prepared } = await import("/prepare.js");
  const steps = STEPS, found = [];
  for (const name of NAMES) {
    const picture = await decoded(await (await fetch(name)).blob(), steps);
    let text = "";
    for (const byte of prepared(picture, steps)) text += String.fromCharCode(byte);
    found.push(btoa(text));
  }
  return found;
})()"""


def prepare_in(browser: Browser, names: list[str], preparation: Preparation) -> list[np.ndarray]:
    steps = json.dumps(browser_steps(preparation))
    found = browser.run(PREPARE.replace("STEPS", steps).replace("NAMES", json.dumps(names)))
    shape = (*preparation.size, preparation.channels)
    return [np.frombuffer(base64.b64decode(one), np.uint8).reshape(shape) for one in found]


@pytest.fixture
def page(browser: Browser, serve: Serve, tmp_path: Path) -> Browser:
    """The browser on a page beside prepare.js, served from ``tmp_path``."""
    script = resources.files("t2t_deploy.serving.web") / "prepare.js"
    (tmp_path / "prepare.js").write_bytes(script.read_bytes())
    (tmp_path / "blank.html").write_text('<!DOCTYPE html><link rel="icon" href="data:,">')
    browser.open(serve(tmp_path) + "blank.html")
    return browser


@pytest.mark.parametrize("case", CASES)
def test_crops_of_photographs_are_prepared_as_by_pillow(
    page: Browser, tmp_path: Path, case: str
) -> None:
    data = pytest.importorskip("skimage.data")
    random = np.random.RandomState(len(case))
    preparation, names = CASES[case], []
    for number in range(50 if case == "bicubic to 224" else 8):
        photograph = getattr(data, PHOTOGRAPHS[number % len(PHOTOGRAPHS)])()
        height, width = (random.randint(24, side + 1) for side in photograph.shape[:2])
        top, left = (
            random.randint(0, side - size + 1)
            for side, size in zip(photograph.shape[:2], (height, width), strict=True)
        )
        names.append(f"{number}.png")
        crop = photograph[top : top + height, left : left + width]
        Image.fromarray(crop).save(tmp_path / names[-1])
    differences = []
    for name, found in zip(names, prepare_in(page, names, preparation), strict=True):
        image = images.read_image(tmp_path / name, preparation)
        expected = images.resize_and_crop(image, preparation)
        differences.append(np.abs(found.astype(int) - expected.astype(int)))
    assert max(one.max() for one in differences) <= 2
    assert max(one.mean() for one in differences) <= 0.2
    assert page.complaints() == []


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("exif", [True, False])
def test_exif_orientation_is_followed_where_the_preparation_says_so(
    page: Browser, tmp_path: Path, orientation: int, exif: bool
) -> None:
    preparation = Preparation(size=(16, 16), exif=exif)
    tags = Image.Exif()
    tags[0x0112] = orientation
    ramp = np.add.outer(8 * np.arange(20), 3 * np.arange(28)).astype(np.uint8)
    path = tmp_path / "turned.jpg"
    Image.fromarray(ramp).save(path, exif=tags, quality=95)
    (found,) = prepare_in(page, [path.name], preparation)
    expected = images.resize_and_crop(images.read_image(path, preparation), preparation)
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 2
