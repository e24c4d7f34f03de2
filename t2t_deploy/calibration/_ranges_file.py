"""The ranges file: what pictures said of a graph, and of which graph, pictures and method."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from t2t_deploy._codec import Rule, from_plain, to_plain
from t2t_deploy._untrusted import DAMAGED, check_safetensors, first_line
from t2t_deploy.calibration._equalise import Equalisation, EqualisedPair
from t2t_deploy.calibration._observe import RangeMethod
from t2t_deploy.errors import CalibrationError
from t2t_deploy.pictures import PictureCounts

FORMAT = "t2t-deploy ranges 1"
_HEADER = "t2t-deploy"
PREPROCESSING = "shorter side to floor(S / 0.9) bicubic, centre crop S, ImageNet mean and deviation"
_Count: TypeAlias = Annotated[int, Rule(lambda n: n > 0, "a whole number of at least 1")]
_Size: TypeAlias = Annotated[float, Rule(lambda n: n >= 0, "a number of at least 0")]


@dataclass(frozen=True, slots=True)
class CalibrationKey:
    """What ranges belong to; they are used for nothing else.

    graph_sha256: of the float32 graph before equalisation. images_sha256: of the pictures'
    contents. image_size: pixels.
    """

    graph_sha256: str
    images_sha256: str
    images: _Count
    image_size: _Count
    method: RangeMethod
    equalised: bool
    preprocessing: str = PREPROCESSING

    def digest(self) -> str:
        """One SHA-256 for all of it."""
        return hashlib.sha256(json.dumps(to_plain(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Calibration:
    """Ranges and second moments of what layers read, and how the graph was equalised before.

    ranges: tensor -> the magnitude of the largest code. largest: tensor -> the largest magnitude
    seen. moments: tensor -> (K, K) float32. changed: initializer -> its value once equalised.
    pictures: SHA-256 of each picture's file. unreadable: the reason for each picture left out.
    counts: of the pictures that were read; None in files of earlier versions.
    """

    key: CalibrationKey
    ranges: Mapping[str, float]
    largest: Mapping[str, float]
    moments: Mapping[str, np.ndarray]
    equalisation: Equalisation
    pictures: tuple[str, ...]
    unreadable: tuple[str, ...] = ()
    counts: PictureCounts | None = None


@dataclass(frozen=True, slots=True)
class _Pair:
    """An `EqualisedPair` without its scale, which is an array of the file."""

    producer: str
    layers: tuple[str, ...]
    tensor: str
    spread_before: float
    spread_after: float
    columns: bool = False


@dataclass(frozen=True, slots=True)
class _Texts:
    """What of a `Calibration` stands in the header."""

    key: CalibrationKey
    ranges: Mapping[str, _Size]
    largest: Mapping[str, _Size]
    equalised: tuple[_Pair, ...]
    refused: Mapping[str, str]
    pictures: tuple[str, ...]
    unreadable: tuple[str, ...]
    counts: PictureCounts | None = None


_ALIKE = ("key", "ranges", "largest", "pictures", "unreadable", "counts")
"""Fields that a calibration and its header share."""


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Write a ranges file; the same calibration gives the same bytes. Raises OSError.

    It is a safetensors file: arrays, and a header of strings that says what they belong to and the
    SHA-256 of the arrays.
    """
    applied = calibration.equalisation.applied
    arrays = {f"moments:{name}": value for name, value in calibration.moments.items()}
    arrays |= {f"scale:{pair.producer}": pair.scale for pair in applied}
    # safetensors writes the memory of an array, whatever its strides
    arrays = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    texts = {
        **{name: getattr(calibration, name) for name in _ALIKE},
        "equalised": [{f.name: getattr(pair, f.name) for f in fields(_Pair)} for pair in applied],
        "refused": calibration.equalisation.refused,
    }
    text = json.dumps(to_plain(texts), sort_keys=True)
    header = {"format": FORMAT, "calibration": text, "sha256": _digest(arrays, text)}
    # one entry: safetensors writes several in an order that changes from run to run
    try:
        save_file(arrays, path, metadata={_HEADER: json.dumps(header)})
    except SafetensorError as err:  # which it raises for a full disk too
        raise OSError(str(err)) from err


def load_calibration(path: Path) -> Calibration:
    """Read a ranges file. Raises CalibrationError where it is missing, another file, or altered."""
    if not path.is_file():
        raise CalibrationError(
            f"there is no ranges file {path}; make one with t2t-deploy calibrate --images DIR"
        )
    try:
        check_safetensors(path)
        with safe_open(path, "numpy") as file:
            header = json.loads((file.metadata() or {}).get(_HEADER, "{}"))
            if header.get("format") != FORMAT:
                raise CalibrationError(
                    f"{path} is of format {header.get('format')!r}; expected {FORMAT!r}: calibrate "
                    "again"
                )
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
        text = header["calibration"]
        if header["sha256"] != _digest(arrays, text):
            raise CalibrationError(
                f"{path} was altered: its content does not match its checksum; calibrate again"
            )
        texts = from_plain(_Texts, json.loads(text), exact=True)
        pairs = (
            EqualisedPair(scale=arrays[f"scale:{pair.producer}"], **asdict(pair))
            for pair in texts.equalised
        )
        moments = {
            name.removeprefix("moments:"): value
            for name, value in arrays.items()
            if name.startswith("moments:")
        }
        alike: dict[str, Any] = {name: getattr(texts, name) for name in _ALIKE}
        equalisation = Equalisation(tuple(pairs), texts.refused)
        return Calibration(moments=moments, equalisation=equalisation, **alike)
    except (SafetensorError, *DAMAGED) as err:
        raise CalibrationError(
            f"{path} is no ranges file ({first_line(err)}); calibrate again"
        ) from err


def _digest(arrays: Mapping[str, np.ndarray], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}:{value.dtype}:{value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
