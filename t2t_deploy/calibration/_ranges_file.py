"""The ranges file: what pictures said of a graph, and of exactly which graph, pictures and method.

A safetensors file: arrays, and a header of strings that says what they belong to and the SHA-256 of
the arrays. It is read as data and nothing in it is executed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from t2t_deploy._files import check_safetensors, first_line
from t2t_deploy.calibration._equalise import Equalisation, EqualisedPair
from t2t_deploy.calibration._ranges import RangeMethod
from t2t_deploy.errors import CalibrationError

FORMAT = "t2t-deploy ranges 1"
_HEADER = "t2t-deploy"
PREPROCESSING = "shorter side to floor(S / 0.9) bicubic, centre crop S, ImageNet mean and deviation"


@dataclass(frozen=True, slots=True)
class CalibrationKey:
    """What ranges belong to; they are used for nothing else.

    graph_sha256: of the float32 graph before equalisation. images_sha256: of the pictures'
    contents. image_size: pixels.
    """

    graph_sha256: str
    images_sha256: str
    images: int
    image_size: int
    method: RangeMethod
    equalised: bool
    preprocessing: str = PREPROCESSING

    def digest(self) -> str:
        """One SHA-256 for all of it."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {**asdict(self), "method": self.method.value}


@dataclass(frozen=True, slots=True)
class Calibration:
    """Ranges and second moments of what layers read, and how the graph was equalised before.

    ranges: tensor -> the magnitude of the largest code. largest: tensor -> the largest magnitude
    seen. moments: tensor -> (K, K) float32. changed: initializer -> its value once equalised.
    pictures: SHA-256 of each picture's file. unreadable: the reason for each picture left out.
    """

    key: CalibrationKey
    ranges: Mapping[str, float]
    largest: Mapping[str, float]
    moments: Mapping[str, np.ndarray]
    equalisation: Equalisation
    pictures: tuple[str, ...]
    unreadable: tuple[str, ...] = ()


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Write a ranges file; the same calibration gives the same bytes."""
    arrays = {f"moments:{name}": value for name, value in calibration.moments.items()}
    equalisation = calibration.equalisation
    arrays |= {f"scale:{pair.producer}": pair.scale for pair in equalisation.applied}
    # safetensors writes the memory of an array, whatever its strides
    arrays = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    told = {
        "key": calibration.key.to_dict(),
        "ranges": dict(calibration.ranges),
        "largest": dict(calibration.largest),
        "equalised": [_told(pair) for pair in equalisation.applied],
        "refused": dict(equalisation.refused),
        "pictures": list(calibration.pictures),
        "unreadable": list(calibration.unreadable),
    }
    text = json.dumps(told, sort_keys=True)
    header = {"format": FORMAT, "calibration": text, "sha256": _digest(arrays, text)}
    # one entry: safetensors writes several in an order that changes from run to run
    save_file(arrays, path, metadata={_HEADER: json.dumps(header)})


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
        told = json.loads(text)
        _check_told(told)
        key, scales = told["key"], _of_kind(arrays, "scale")
        return Calibration(
            key=CalibrationKey(**{**key, "method": RangeMethod(key["method"])}),
            ranges=told["ranges"],
            largest=told["largest"],
            moments=_of_kind(arrays, "moments"),
            equalisation=Equalisation(
                tuple(
                    EqualisedPair(
                        scale=scales[pair["producer"]], **{**pair, "layers": tuple(pair["layers"])}
                    )
                    for pair in told["equalised"]
                ),
                told["refused"],
            ),
            pictures=tuple(told["pictures"]),
            unreadable=tuple(told["unreadable"]),
        )
    except (
        SafetensorError,
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
    ) as err:
        # AttributeError: JSON that is no table, or an array of a type that numpy lacks
        raise CalibrationError(
            f"{path} is no ranges file ({first_line(err)}); calibrate again"
        ) from err


def _check_told(told: Mapping[str, Any]) -> None:
    """Raise ValueError, TypeError or KeyError where a value is of another kind."""
    numbers = [*told["ranges"].values(), *told["largest"].values()]
    if not all(type(n) in (int, float) and math.isfinite(n) and n >= 0 for n in numbers):
        raise ValueError("ranges that are no finite numbers")
    key = told["key"]
    if not all(type(key[name]) is int and key[name] > 0 for name in ("images", "image_size")):
        raise ValueError("a key without counts")
    texts = [
        *told["pictures"], *told["unreadable"], *told["refused"].values(),
        *(word for pair in told["equalised"] for word in pair["layers"]),
        *(key[name] for name in ("graph_sha256", "images_sha256", "preprocessing")),
    ]  # fmt: skip
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("names that are no texts")


def _told(pair: EqualisedPair) -> dict[str, Any]:
    values = {field.name: getattr(pair, field.name) for field in fields(pair)}
    del values["scale"]
    return values


def _of_kind(arrays: Mapping[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    prefix = f"{kind}:"
    return {
        name.removeprefix(prefix): value
        for name, value in arrays.items()
        if name.startswith(prefix)
    }


def _digest(arrays: Mapping[str, np.ndarray], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}:{value.dtype}:{value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
