"""One preprocessing for verification, calibration and serving."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2t_deploy.errors import ImageError
from t2t_deploy.images import MEAN, STD, normalise, preprocess, read_image


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def encoded(format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(40, 50)).save(buffer, format)
    return buffer.getvalue()


def test_normalise() -> None:
    pixels = noise(4, 6)
    found = normalise(pixels)
    assert (found.shape, found.dtype) == ((3, 4, 6), np.float32)
    assert found.flags.c_contiguous
    wanted = (pixels[..., 1] / 255 - 0.456) / 0.224
    np.testing.assert_allclose(found[1], wanted, rtol=1e-5, atol=1e-6)
    assert normalise(np.stack([pixels] * 2)).shape == (2, 3, 4, 6)


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (300, 300), (100, 90), (32, 4000)])
@pytest.mark.parametrize("target", [224, 384, 32])
def test_preprocess_makes_every_picture_the_same_size(size: tuple[int, int], target: int) -> None:
    assert preprocess(Image.new("RGB", size), target).shape == (3, target, target)


def test_preprocess_takes_the_centre() -> None:
    """248 = floor(224 / 0.9) pixels on the shorter side: nothing is resampled here."""
    pixels = noise(248, 300)
    found = preprocess(Image.fromarray(pixels), 224)
    np.testing.assert_array_equal(found, normalise(pixels[12:236, 38:262]))


def test_preprocess_resamples_bicubically() -> None:
    """The shorter side becomes 248 = floor(224 / 0.9), the longer one keeps the proportion."""
    image = Image.fromarray(noise(480, 640))
    resized = image.resize((331, 248), Image.Resampling.BICUBIC)
    wanted = normalise(np.asarray(resized)[12:236, 54:278])
    np.testing.assert_array_equal(preprocess(image, 224), wanted)


def test_preprocess_keeps_a_plain_colour() -> None:
    found = preprocess(Image.new("RGB", (640, 480), (10, 128, 250)), 32)
    wanted = (np.array((10, 128, 250), np.float32) / 255 - MEAN) / STD
    np.testing.assert_array_equal(found, np.broadcast_to(wanted[:, None, None], (3, 32, 32)))


def test_a_picture_is_upright(tmp_path: Path) -> None:
    pixels = noise(8, 16)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned by 90 degrees when it was taken
    image.save(tmp_path / "turned.png", exif=exif)
    found = np.asarray(read_image(tmp_path / "turned.png"))
    np.testing.assert_array_equal(found, np.rot90(pixels, -1))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / f"picture.{'tif' if mode == 'CMYK' else 'png'}"
    Image.fromarray(noise(8, 8)).convert(mode).save(path)
    assert read_image(path).mode == "RGB"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no picture",
        encoded("JPEG")[:700],
        encoded("PNG")[:700],
        # a chunk of an unknown kind in front of the pixels: Pillow raises a SyntaxError
        encoded("PNG").replace(b"IDAT", b"\xf3,\x00\x95"),
    ],
    ids=["empty", "text", "cut JPEG", "cut PNG", "broken PNG"],
)
def test_a_picture_that_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"cannot read the picture .*broken\.jpg: .*; replace or"):
        read_image(path)


def test_no_picture(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot read the picture"):
        read_image(tmp_path / "missing.jpg")


def test_a_picture_that_would_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.png"
    Image.new("RGB", (40, 40)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="decompression bomb"):
        read_image(path)
