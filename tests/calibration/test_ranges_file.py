"""Ranges files: what is written is read, what was altered or is something else is refused."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from t2t_deploy.calibration import (
    Calibration,
    CalibrationKey,
    Equalisation,
    RangeMethod,
    load_calibration,
    save_calibration,
)
from t2t_deploy.calibration._equalise import EqualisedPair
from t2t_deploy.errors import CalibrationError
from t2t_deploy.pictures import PictureCounts

KEY = CalibrationKey("a" * 64, "b" * 64, 12, 224, RangeMethod.MSE, True)


def calibration() -> Calibration:
    random = np.random.default_rng(0)
    pairs = (
        EqualisedPair("norm1", ("q", "k"), "norm1:0", random.uniform(0.1, 9, 4), 40.5, 2.25),
        EqualisedPair("v", ("proj",), "mixed", random.uniform(0.1, 9, 8)[::2], 3.0, 1.5),
    )
    return Calibration(
        key=KEY,
        ranges={"norm1:0": 1.7, "mixed": 0.1 + 0.2},
        largest={"norm1:0": 2.5, "mixed": 1e-30},
        moments={
            name: random.standard_normal((4, 4)).astype(np.float32) for name in ("norm1:0", "mixed")
        },
        equalisation=Equalisation(pairs, {"fc2": "GELU(x / s) is not GELU(x) / s"}),
        pictures=("c" * 64, "d" * 64),
        unreadable=("cannot read the picture ä.png",),
        counts=PictureCounts(2, 2, 1, 1, 0, 0),
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "graph.ranges"
    save_calibration(calibration(), path)
    return path


NO_FILE = r"is no ranges file \("


def assert_refused(path: Path, message: str = NO_FILE) -> None:
    """By one sentence that names the file and says what to do."""
    with pytest.raises(CalibrationError, match=message) as caught:
        load_calibration(path)
    told = str(caught.value)
    assert told.startswith(f"{path} ") and told.endswith("calibrate again")
    assert "\n" not in told


def test_what_was_saved_is_loaded(saved: Path) -> None:
    wanted, found = calibration(), load_calibration(saved)
    # the second scale is every other number of another array
    assert not wanted.equalisation.applied[1].scale.flags.c_contiguous
    assert (found.key, found.ranges, found.largest) == (wanted.key, wanted.ranges, wanted.largest)
    assert isinstance(found.key.method, RangeMethod)
    assert (found.pictures, found.unreadable) == (wanted.pictures, wanted.unreadable)
    assert found.moments.keys() == wanted.moments.keys()
    for name, value in wanted.moments.items():
        np.testing.assert_array_equal(found.moments[name], value)
        assert found.moments[name].dtype == np.float32
    assert found.equalisation.refused == wanted.equalisation.refused
    for pair, other in zip(wanted.equalisation.applied, found.equalisation.applied, strict=True):
        np.testing.assert_array_equal(other.scale, pair.scale)
        assert other.scale.dtype == np.float64
        # from Python 3.13 on dataclasses compare field by field, also one and the same array
        rest = [dataclasses.replace(one, scale=np.ones(())) for one in (pair, other)]
        assert rest[0] == rest[1]


def test_one_without_equalisation_is_loaded(tmp_path: Path) -> None:
    plain = dataclasses.replace(calibration(), equalisation=Equalisation(), unreadable=())
    save_calibration(plain, tmp_path / "plain")
    found = load_calibration(tmp_path / "plain")
    assert found.equalisation == Equalisation() and found.unreadable == ()


def test_the_same_calibration_has_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    """Also where its parts were found in another order."""
    before = calibration()
    other = dataclasses.replace(
        before,
        ranges=dict(reversed(list(before.ranges.items()))),
        moments=dict(reversed(list(before.moments.items()))),
    )
    for name, value in {
        "again": before,
        "reversed": other,
        "read": load_calibration(saved),
    }.items():
        save_calibration(value, tmp_path / name)
        assert (tmp_path / name).read_bytes() == saved.read_bytes(), name


def test_a_flipped_byte_is_refused_wherever_it_is(saved: Path) -> None:
    """Every 11th byte of the header, every byte of the arrays."""
    whole = saved.read_bytes()
    arrays = 8 + int.from_bytes(whole[:8], "little")
    assert len(whole) - arrays == 2 * 64 + 2 * 32
    for index in [*range(0, arrays, 11), *range(arrays, len(whole))]:
        altered = bytearray(whole)
        altered[index] ^= 1
        saved.write_bytes(altered)
        with pytest.raises(CalibrationError, match="calibrate again"):
            load_calibration(saved)
    saved.write_bytes(whole)
    load_calibration(saved)


@pytest.mark.parametrize("change", ["name", "dtype", "shape", "missing", "more"])
def test_arrays_of_another_name_type_or_shape_are_refused(saved: Path, change: str) -> None:
    """The same header and, but for what is missing or more, the same numbers."""
    header = header_of(saved)
    arrays = load_file(saved)
    value = arrays.pop("moments:mixed")
    if change == "name":
        arrays["moments:other"] = value
    elif change == "dtype":
        arrays["moments:mixed"] = value.view(np.int32)
    elif change == "shape":
        arrays["moments:mixed"] = value.reshape(2, 8)
    elif change == "more":
        arrays |= {"moments:mixed": value, "moments:more": value}
    save_file(arrays, saved, metadata={"t2t-deploy": header})
    assert_refused(saved, "was altered")


def header_of(path: Path) -> str:
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    return str(json.loads(whole[8:start])["__metadata__"]["t2t-deploy"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *((lambda whole, kept=kept: whole[:kept], NO_FILE) for kept in (0, 1, 7, 8, 100, -65, -1)),
        (lambda whole: whole + b"\0", NO_FILE),
        (
            lambda whole: whole[:-1] + bytes([whole[-1] ^ 1]),
            "was altered: its content does not match its checksum; calibrate again$",
        ),
        (lambda whole: whole.replace(b": 1.7", b": 1.9"), "was altered"),
        (
            lambda whole: whole.replace(b"ranges 1", b"ranges 2"),
            "is of format 't2t-deploy ranges 2'; expected 't2t-deploy ranges 1': ",
        ),
        *((lambda _, text=text: text.encode(), NO_FILE) for text in ("tensor,range\n", "{}", "é")),
    ],
)
def test_bytes_that_are_not_those_saved_are_refused(
    saved: Path, change: Callable[[bytes], bytes], message: str
) -> None:
    whole = saved.read_bytes()
    changed = change(whole)
    assert changed != whole
    saved.write_bytes(changed)
    assert_refused(saved, message)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({}, "is of format None; expected"),
        ({"format": "t2t-deploy ranges 1"}, "is no ranges file"),
    ],
)
def test_arrays_of_a_type_that_numpy_lacks_are_refused(
    tmp_path: Path, header: dict[str, str], message: str
) -> None:
    path = tmp_path / "model.safetensors"
    told = {
        "__metadata__": {"t2t-deploy": json.dumps(header)},
        "head.weight": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]},
    }
    text = json.dumps(told).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(2))
    assert_refused(path, message)


@pytest.mark.parametrize(
    "header",
    [
        *("[]", "1", '"text"', "null", "{", "", pytest.param("[" * 100_000, id="nested")),
        *(None, "without calibration", "without sha256"),
    ],
)
def test_headers_that_say_nothing_of_ranges_are_refused(saved: Path, header: str | None) -> None:
    message = NO_FILE
    if header is None:  # as of a file of weights
        save_file({"head.weight": np.ones((2, 3), np.float32)}, saved)
        message = "is of format None; expected 't2t-deploy ranges 1': "
    else:
        if header.startswith("without "):
            values = json.loads(header_of(saved))
            missing = header.removeprefix("without ")
            del values[missing]
            header, message = json.dumps(values), rf"{NO_FILE}'{missing}'\)"
        save_file(load_file(saved), saved, metadata={"t2t-deploy": header})
    assert_refused(saved, message)


class Bomb:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.mark,)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "graph.ranges", tmp_path / "mark"
    path.write_bytes(pickle.dumps(Bomb(mark)))
    assert_refused(path)
    assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists()  # it would have


def test_a_missing_file_and_how_to_make_one(tmp_path: Path) -> None:
    message = "there is no ranges file .*gone; make one with t2t-deploy calibrate --images DIR$"
    with pytest.raises(CalibrationError, match=message):
        load_calibration(tmp_path / "gone")
    (tmp_path / "gone").mkdir()
    with pytest.raises(CalibrationError, match=message):
        load_calibration(tmp_path / "gone")


CHANGES: dict[str, Any] = {
    "graph_sha256": "e" * 64,
    "images_sha256": "e" * 64,
    "images": 13,
    "image_size": 225,
    "method": RangeMethod.MINMAX,
    "equalised": False,
    "preprocessing": "centre crop",
}


def test_the_digest_of_a_key_changes_with_each_of_its_fields() -> None:
    fields = {field.name for field in dataclasses.fields(CalibrationKey)}
    swapped = {"graph_sha256": KEY.images_sha256, "images_sha256": KEY.graph_sha256}
    assert CHANGES.keys() == fields
    changes = [{}, swapped, *({name: value} for name, value in CHANGES.items())]
    digests = {dataclasses.replace(KEY, **change).digest() for change in changes}
    assert len(digests) == len(changes) and KEY.digest() in digests
