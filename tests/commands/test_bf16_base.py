"""What is lost where OpenVINO computes the rest of an int8 graph in bf16: nothing to speak of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from natural import held_out_crops, write_calibration_crops

from t2t_deploy._optional import is_installed
from t2t_deploy.commands import export_onnx, quantize_onnx
from t2t_deploy.images import preprocess
from t2t_deploy.model import config_for_variant, random_state_dict, save_weights
from t2t_deploy.runtime import SessionRequest, open_session, why_not_in
from t2t_deploy.types import Precision, Target
from t2t_deploy.verify import logits_of

NO_BF16 = (
    why_not_in("openvino", Precision.BF16)
    if is_installed("openvino")
    else "openvino is not installed"
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NO_BF16 is not None, reason=str(NO_BF16)),
]
SIDE, PICTURES = 224, 8
# by how much the error may differ with the base; the int8 codes themselves change with it
MORE = 0.01


def background(color: tuple[int, int, int], levels: int) -> np.ndarray:
    """One colour with so many levels of noise, (1, 3, 224, 224) normalised."""
    noise = np.random.default_rng(0).integers(-levels, levels + 1, (SIDE, SIDE, 3))
    return preprocess_pixels(np.asarray(color) + noise)


def preprocess_pixels(pixels: np.ndarray) -> np.ndarray:
    from PIL import Image

    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return preprocess(image, SIDE)[None].astype(np.float32)


def picture_sets() -> dict[str, np.ndarray]:
    rows = np.linspace(100, 140, SIDE)[:, None, None] * np.ones((1, SIDE, 3))
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3))
    return {
        "photographs": held_out_crops(PICTURES, SIDE),
        "noise": preprocess_pixels(noise),
        "gradient": preprocess_pixels(rows),
        "cream": background((254, 252, 207), 1),
        "white": background((250, 250, 250), 2),
        "dark": background((10, 10, 10), 1),
    }


@pytest.mark.parametrize(("variant", "factor"), [("14", 1), ("7", 1), ("7", 4), ("t_14", 1)])
def test_the_error_is_that_of_a_float32_base(variant: str, factor: int) -> None:
    """factor: of the weights of a performer's keys and queries, whose exponents bf16 could lose."""
    weights = random_state_dict(config_for_variant(variant))
    for name in [name for name in weights if name.endswith("kqv.weight")]:
        weights[name][: 2 * len(weights[name]) // 3] *= factor
    checkpoint = Path("weights.safetensors")
    save_weights(weights, checkpoint)
    source = export_onnx(variant=variant, checkpoint=checkpoint, target=Target.OPENVINO)
    crops = write_calibration_crops(Path("crops"), 64)
    made = quantize_onnx(source.path, images=crops, base=Precision.BF16, speed=False)
    assert not made.require_manifest().failed
    request = SessionRequest("openvino", made.path, precision=Precision.INT8)
    with (
        open_session(SessionRequest("openvino", source.path, precision=Precision.FP32)) as exact,
        open_session(request) as fp32,
        open_session(replace(request, base=Precision.BF16)) as bf16,
    ):
        for name, pictures in picture_sets().items():
            expected = logits_of(exact, pictures).astype(np.float64)
            norms = np.linalg.norm(expected, axis=1)
            errors = [
                float((np.linalg.norm(logits_of(one, pictures) - expected, axis=1) / norms).mean())
                for one in (fp32, bf16)
            ]
            line = f"{variant} x{factor} {name}: fp32 base {errors[0]:.4f}, bf16 {errors[1]:.4f}"
            print(line)
            assert errors[1] < errors[0] + MORE, line
