"""One preprocessing for verification, calibration and serving."""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from natural import CALIBRATION, TEST, shipped
from PIL import Image

import t2t_deploy.images as images_module
from t2t_deploy._preparation import IMAGENET_MEAN, IMAGENET_STD, USUAL
from t2t_deploy.errors import ImageError, shown_path
from t2t_deploy.images import (
    Assumed,
    assumed_of,
    decode_image,
    preprocess,
    read_image,
    resize_and_crop,
)

from .prepared import normalise, usual


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def encoded(image: Image.Image | np.ndarray, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    opened = image if isinstance(image, Image.Image) else Image.fromarray(image)
    opened.save(buffer, format, **options)
    return buffer.getvalue()


def decoded(content: bytes) -> np.ndarray:
    return np.asarray(decode_image(content, "picture"))


def repeated(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, -1)


PNG, JPEG = (encoded(noise(40, 50), format) for format in ("PNG", "JPEG"))


def test_normalise_scales_channels_and_moves_them_first() -> None:
    pixels = noise(4, 6)
    found = normalise(pixels)
    assert (found.shape, found.dtype) == ((3, 4, 6), np.float32)
    assert found.flags.c_contiguous
    expected = (pixels[..., 1] / 255 - 0.456) / 0.224
    np.testing.assert_allclose(found[1], expected, rtol=1e-5, atol=1e-6)
    assert normalise(np.stack([pixels] * 2)).shape == (2, 3, 4, 6)


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (300, 300), (100, 90), (32, 4000)])
@pytest.mark.parametrize("target", [224, 384, 32])
def test_preprocess_makes_every_image_the_same_size(size: tuple[int, int], target: int) -> None:
    assert preprocess(Image.new("RGB", size), target).shape == (3, target, target)


def test_preprocess_takes_the_centre() -> None:
    """248 = floor(224 / 0.9) pixels on the shorter side: nothing is resampled here."""
    pixels = noise(248, 300)
    found = preprocess(Image.fromarray(pixels), 224)
    np.testing.assert_array_equal(found, normalise(pixels[12:236, 38:262]))


def test_preprocess_resamples_bicubically() -> None:
    """The shorter side becomes 248 = floor(224 / 0.9), the longer one keeps the proportion."""
    image = Image.fromarray(noise(480, 640))
    resized = image.resize((330, 248), Image.Resampling.BICUBIC)
    expected = normalise(np.asarray(resized)[12:236, 53:277])
    np.testing.assert_array_equal(preprocess(image, 224), expected)


def test_preprocess_keeps_a_plain_colour() -> None:
    found = preprocess(Image.new("RGB", (640, 480), (10, 128, 250)), 32)
    mean, std = (np.array(one, np.float32) for one in (IMAGENET_MEAN, IMAGENET_STD))
    expected = (np.array((10, 128, 250), np.float32) / 255 - mean) / std
    np.testing.assert_array_equal(found, np.broadcast_to(expected[:, None, None], (3, 32, 32)))


def test_an_image_is_upright(tmp_path: Path) -> None:
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
        JPEG[:700],
        PNG[:700],
        # a chunk of an unknown kind in front of the pixels: Pillow raises a SyntaxError
        PNG.replace(b"IDAT", b"\xf3,\x00\x95"),
    ],
    ids=["empty", "text", "cut JPEG", "cut PNG", "broken PNG"],
)
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"cannot read the picture .*broken\.jpg: .*; replace or"):
        read_image(path)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for path, why in (
        (tmp_path, "it is a folder; name a picture's file"),
        (tmp_path / "pipe.jpg", "it is no regular file"),
        (tmp_path / "missing.jpg", "cannot read the picture"),
    ):
        with pytest.raises(ImageError, match=why):
            read_image(path)


@pytest.mark.parametrize("limit", [1600, 1599, 800, 799, 100])
def test_pillows_limit_of_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """Up to twice the limit Pillow only warns; whatever the filters, that is an error here."""
    path = tmp_path / "image.png"
    Image.new("RGB", (40, 40)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        if limit == 1600:
            assert read_image(path).size == (40, 40)
        else:
            with pytest.raises(
                ImageError, match=f"a decompression bomb, or larger than the {limit:,}"
            ):
                read_image(path)
    assert warned == []


def released(image: Image.Image, size: int) -> np.ndarray:
    """The released evaluation, written out from torchvision's documentation, in float32."""
    scale_size = math.floor(size / 0.9)
    w, h = image.size
    short, long = min(w, h), max(w, h)
    new_long = int(scale_size * long / short)
    new_w, new_h = (scale_size, new_long) if w <= h else (new_long, scale_size)
    image = image.resize((new_w, new_h), Image.Resampling.BICUBIC)
    top, left = round((new_h - size) / 2.0), round((new_w - size) / 2.0)
    tensor = np.asarray(image.crop((left, top, left + size, top + size))).transpose(2, 0, 1)
    scaled = tensor.astype(np.float32) / np.float32(255)
    for channel, (mean, std) in enumerate(
        zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)
    ):
        scaled[channel] = (scaled[channel] - np.float32(mean)) / np.float32(std)
    return scaled


@pytest.mark.parametrize("size", [224, 384, 32])
@pytest.mark.parametrize("name", [*TEST, *CALIBRATION[:2]])
def test_preprocess_is_the_released_evaluation(name: str, size: int) -> None:
    image = read_image(shipped(name))
    for width in (image.width, image.width - 37):
        part = image.crop((0, 0, width, image.height))
        np.testing.assert_array_equal(preprocess(part, size), released(part, size))


@pytest.mark.parametrize(
    "size", [(640, 480), (31, 777), (997, 331), (3000, 200), (1, 1), (7, 300), (300, 5000)]
)
@pytest.mark.parametrize("target", [224, 32])
def test_cropping_before_resizing_differs_by_one_level_at_most(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], target: int
) -> None:
    image = Image.fromarray(noise(size[1], size[0]))
    expected = resize_and_crop(image, usual(target)).astype(int)
    monkeypatch.setattr(images_module, "MAX_RESIZED_PIXELS", 0)
    found = resize_and_crop(image, usual(target)).astype(int)
    assert np.abs(found - expected).max() <= 1
    assert (found != expected).mean() < 0.01


@pytest.mark.parametrize("size", [(20_000, 20), (20, 20_000)])
def test_a_long_image_is_never_resized_whole(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    resize, made = Image.Image.resize, []

    def recording(self: Image.Image, asked: tuple[int, int], *args: Any, **more: Any) -> Any:
        made.append(asked[0] * asked[1])
        return resize(self, asked, *args, **more)

    monkeypatch.setattr(Image.Image, "resize", recording)
    pixels = resize_and_crop(Image.new("RGB", size, (10, 128, 250)), usual(224))
    np.testing.assert_array_equal(pixels, np.broadcast_to((10, 128, 250), (224, 224, 3)))
    assert max(made) <= 224 * 224


def test_one_pixel_fills_the_image() -> None:
    image = decode_image(encoded(Image.new("RGB", (1, 1), (10, 128, 250))), "one")
    pixels = resize_and_crop(image, usual(224))
    np.testing.assert_array_equal(pixels, np.broadcast_to((10, 128, 250), (224, 224, 3)))


def png16(values: np.ndarray) -> bytes:
    """(H, W, C) uint16 as a PNG of 16 bits a channel, which Pillow does not write for colours."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        whole = kind + content
        return struct.pack(">I", len(content)) + whole + struct.pack(">I", zlib.crc32(whole))

    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("channels", [1, 2, 3, 4], ids=["grey", "grey, alpha", "RGB", "RGBA"])
def test_sixteen_bits_keep_their_high_byte(channels: int) -> None:
    values = np.random.default_rng(1).integers(0, 2**16, (8, 9, channels), np.uint16)
    colours = values[..., :3] if channels > 2 else np.repeat(values[..., :1], 3, -1)
    np.testing.assert_array_equal(decoded(png16(values)), colours >> 8)


@pytest.mark.parametrize("format", ["TIFF", "PPM"])
def test_sixteen_bit_greys_of_other_formats(format: str) -> None:
    values = np.random.default_rng(1).integers(0, 2**16, (8, 9), np.uint16)
    np.testing.assert_array_equal(decoded(encoded(values, format)), repeated(values >> 8))


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_greys_of_fewer_bits(bits: int) -> None:
    values = np.random.default_rng(1).integers(0, 2**bits, (8, 9), np.uint16)
    steps = USUAL.changed({"bits": bits}, channels=3)
    found = decode_image(encoded(values, "TIFF"), "picture", steps)
    np.testing.assert_array_equal(np.asarray(found), repeated(values >> (bits - 8)))
    assert assumed_of(found) == ()
    untold = decode_image(encoded(values, "TIFF"), "picture")
    assert len(assumed_of(untold)) == (bits < 16)
    if bits == 12:
        assert "end at 4095 or below and are taken as 0 to 65535" in assumed_of(untold)[0]


@pytest.mark.parametrize("bits", [None, 12])
def test_white_is_zero(bits: int | None) -> None:
    """Pillow inverts 8-bit greys of such TIFFs by itself, those of 16 bits not."""
    values = np.random.default_rng(1).integers(0, 2 ** (bits or 16), (8, 9), np.uint16)
    steps = USUAL.changed({"bits": bits}, channels=3)
    inverted = (2 ** (bits or 16) - 1 - values).astype(np.uint16)
    content = encoded(inverted, "TIFF", tiffinfo={262: 0})
    found = np.asarray(decode_image(content, "picture", steps))
    np.testing.assert_array_equal(found, repeated(values >> ((bits or 16) - 8)))


def test_exif_may_be_ignored() -> None:
    image = Image.fromarray(noise(8, 12))
    exif = image.getexif()
    exif[0x0112] = 6
    content = encoded(image, exif=exif)
    upright = decode_image(content, "picture")
    assert upright.size == (8, 12) and "turned upright by EXIF" in assumed_of(upright)[0]
    assert assumed_of(decode_image(encoded(image), "picture")) == ()
    ignoring = USUAL.changed({"exif": False}, channels=3)
    ignored = decode_image(content, "x", ignoring)
    np.testing.assert_array_equal(np.asarray(ignored), noise(8, 12))
    assert assumed_of(ignored) == ()


def test_what_is_dropped_is_said_once_for_all() -> None:
    pages = encoded(noise(8, 9), "TIFF", save_all=True, append_images=[Image.new("RGB", (9, 8))])
    alpha = encoded(noise(8, 9, 4))
    assumed = Assumed()
    for name, content in {"a.png": alpha, "b.png": alpha, "c.tif": pages, "d.png": PNG}.items():
        assumed.add(name, decode_image(content, name))
    assert assumed.lines() == [
        "a.png and 1 more: transparency is dropped, and colours below it show",
        "c.tif: the first of 2 pages or frames is taken",
    ]


@pytest.mark.parametrize("format", ["GIF", "TIFF"])
def test_a_damaged_later_frame_costs_no_first_one(format: str) -> None:
    frames = [Image.fromarray(np.roll(noise(40, 40), index, axis=0)) for index in range(4)]
    content = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    whole = decode_image(content, "picture")
    cut = decode_image(content[: len(content) * (80 if format == "GIF" else 60) // 100], "picture")
    np.testing.assert_array_equal(np.asarray(cut), np.asarray(whole))
    assert "a later one is damaged" in assumed_of(cut)[0]


def test_what_was_assumed_adds_up_over_processes() -> None:
    one, two = Assumed(), Assumed()
    alpha = decode_image(encoded(noise(8, 9, 4)), "x")
    one.add("a.png", alpha)
    for name in ("b.png", "c.png"):
        two.add(name, alpha)
    one.merge(pickle.loads(pickle.dumps(two)))
    assert one.lines() == ["a.png and 2 more: transparency is dropped, and colours below it show"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\0" * 128 + b"DICM" + b"\0" * 16, "is DICOM, .*: save it as PNG"),
        (b"\x93NUMPY\1\0v\0", "is a numpy array; give arrays in Python"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "is HEIC, .*: convert it"),
        (b"\x1f\x8b\x08\0\0\0", "is gzip, such as NIfTI"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is SVG or XML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS: git lfs pull"),
        (b"no picture", "is of no picture format that Pillow knows"),
    ],
)
def test_other_files_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=words):
        read_image(path)
    with pytest.raises(ImageError, match=words):
        decode_image(content, "x")


@pytest.mark.parametrize("mode", ["I", "F"])
def test_values_without_a_range_are_refused(mode: str) -> None:
    with pytest.raises(ImageError, match="an unknown value of white; save it with 8 or 16 bits"):
        decoded(encoded(Image.new(mode, (4, 4)), "TIFF"))


def test_grey_palette_and_alpha_keep_their_colours() -> None:
    pixels = noise(8, 9, 4)
    grey = pixels[..., 0]
    # alpha is dropped, not blended, as by the released evaluation
    np.testing.assert_array_equal(decoded(encoded(pixels)), pixels[..., :3])
    np.testing.assert_array_equal(decoded(encoded(grey)), repeated(grey))
    palette = Image.fromarray(grey, "L").convert("P")
    palette.putpalette([value for index in range(256) for value in (index, 255 - index, 7)])
    # Pillow warns of such a palette when it is converted, and warnings are errors in tests
    content = encoded(palette, transparency=bytes(range(256)))
    expected = np.stack((grey, 255 - grey, np.full_like(grey, 7)), -1)
    np.testing.assert_array_equal(decoded(content), expected)


def test_cmyk_is_subtractive() -> None:
    found = decoded(encoded(Image.new("CMYK", (4, 4), (255, 0, 0, 0)), "TIFF"))
    np.testing.assert_array_equal(found, np.broadcast_to((0, 255, 255), (4, 4, 3)))


def test_a_name_that_is_no_text_is_printable(tmp_path: Path) -> None:
    """Bytes that are no UTF-8, and a line break: the message can be printed, on one line."""
    name = os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff\nname.jpg")
    Path(name).write_bytes(PNG)
    assert read_image(Path(name)).size == (50, 40)
    Path(name).write_bytes(b"no picture")
    with pytest.raises(ImageError) as caught:
        read_image(Path(name))
    message = str(caught.value)
    assert message.encode("utf-8") and "\n" not in message
    assert rf"{tmp_path}/bad\xff\nname.jpg: its content is of no picture format" in message
    assert shown_path(Path("plain/nämé 1.png")) == "plain/nämé 1.png"
