"""`inspect --features`: token maps of the reference and of artifacts, and their picture."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from t2t_deploy import draw_features
from t2t_deploy.errors import UsageError
from t2t_deploy.images import preprocess, read_image
from t2t_deploy.model import ModelConfig, load_reference, random_state_dict, save_weights
from t2t_deploy.runtime import SessionRequest, open_session

from ..small import OTHER_BACKBONES, tiny_model
from .command import Change, Run
from .graphs import FORMS, each_form, turned, with_value

pytest.importorskip("onnxruntime")
pytest.importorskip("matplotlib")

LAYERS = [
    "picture",
    "tokens_to_token.attention1 (sum after mlp)",
    "tokens_to_token.attention2 (sum after mlp)",
    "pos_embed",
    "blocks.0 (sum after mlp)",
    "blocks.1 (sum after mlp)",
    "head",
]
GRIDS = [[32, 32], [8, 8], [4, 4], [2, 2], [2, 2], None, None]
CHANNELS = [3, 16, 16, 16, 16, 16, 10]
# where each is found in a float32 graph of the default form
TENSORS = {
    LAYERS[1]: "/tokens/blocks.0/tail/Add_output_0",
    LAYERS[2]: "/tokens/blocks.1/tail/Add_output_0",
    LAYERS[4]: "/blocks.0/Add_1_output_0",
    LAYERS[5]: "/blocks.1/Add_1_output_0",
    LAYERS[6]: "logits",
}
# one relative error of a whole tiny model; export verifies the same on its logits
ALLOWED = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 4e-2, "int8": 6e-2}


@pytest.fixture
def image(empty_folder: Path) -> Path:
    stream = np.random.RandomState(9)
    coarse = Image.fromarray(stream.randint(0, 256, (6, 6, 3), np.uint8))
    path = empty_folder / "noise.png"
    coarse.resize((48, 40)).save(path)
    return path


def hooked(model: Any, picture: np.ndarray) -> dict[str, np.ndarray]:
    """What plain hooks on modules see, and the sum of tokens and positions."""
    kept: dict[str, torch.Tensor] = {}

    def keep(layer: str) -> Callable[..., None]:
        return lambda module, inputs, output: kept.update({layer: output})

    handles = [
        model.tokens_to_token.attention1.register_forward_hook(keep(LAYERS[1])),
        model.tokens_to_token.attention2.register_forward_hook(keep(LAYERS[2])),
        model.tokens_to_token.register_forward_hook(keep("tokens")),
        model.blocks[0].register_forward_hook(keep(LAYERS[4])),
        model.blocks[1].register_forward_hook(keep(LAYERS[5])),
    ]
    with torch.inference_mode():
        kept["head"] = model(torch.from_numpy(picture[None]).double())[:, None]
        cls = model.cls_token
        kept["pos_embed"] = torch.cat((cls, kept.pop("tokens")[2]), dim=1) + model.pos_embed
    for handle in handles:
        handle.remove()
    return {layer: values[0].numpy() for layer, values in kept.items()}


def stages_of(run: Run, path: object, image: Path) -> list[dict[str, Any]]:
    found = run.json("inspect", path, "--features", image, status=0)
    return list(found["features"]["stages"])


def quantised(run: Run, onnx_file: Path, image: Path, *form: str) -> str:
    """A file in 8 bits, whose ranges are those of the one picture."""
    Path("train").mkdir()
    shutil.copy(image, "train")
    words = ("quantize", onnx_file, *form, "--no-speed", "--force", "--json", "-o", "8.onnx")
    done = run(*words, *([] if "dynamic" in form else ["--images", "train"]))
    assert done.status in (0, 3), done.err
    return "8.onnx"


def test_stages_and_errors_are_those_of_hooks_and_the_graph(
    run: Run, onnx_file: Path, weights_file: Path, tiny: ModelConfig, image: Path, tmp_path: Path
) -> None:
    found = run.json("inspect", onnx_file, "--features", image, status=0)["features"]
    assert found["image"] == str(image)
    assert found["plot"] == f"artifacts/logs/{onnx_file.stem}.features.png"
    assert [stage["stage"] for stage in found["stages"]] == LAYERS
    assert [stage["grid"] for stage in found["stages"]] == GRIDS
    assert [stage["channels"] for stage in found["stages"]] == CHANNELS
    assert {stage["artifact"] for stage in found["stages"]} == {onnx_file.name}

    picture = preprocess(read_image(image), 32)
    wanted = hooked(load_reference(weights_file, tiny).double(), picture)
    model = onnx.load(onnx_file)
    shown = [name for name in TENSORS.values() if name != "logits"]
    infos = {info.name: info for info in model.graph.value_info}
    model.graph.output.extend(infos[name] for name in shown)
    onnx.save(model, tmp_path / "shown.onnx")
    with open_session(SessionRequest("ort-cpu", tmp_path / "shown.onnx")) as session:
        outputs = session.run({"image": picture[None]})
    by_layer = {stage["stage"]: stage for stage in found["stages"]}
    assert by_layer["picture"]["rel_l2"] == 0.0
    for layer, tensor in TENSORS.items():
        # only the class row of the last block, and the tokens as rows
        values = outputs[tensor].astype(np.float64).reshape(-1, wanted[layer].shape[1])
        rows = wanted[layer][: len(values)]
        error = np.linalg.norm(values - rows) / np.linalg.norm(rows)
        assert by_layer[layer]["rel_l2"] == pytest.approx(error, rel=1e-6)
        assert 0 < error < ALLOWED["fp32"]
    assert 0 < by_layer["pos_embed"]["rel_l2"] < ALLOWED["fp32"]
    assert by_layer[LAYERS[5]]["note"] == "the graph computes the class row only: no map"

    logits = wanted["head"][0]
    order = np.argsort(-logits)[:5]
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    reference, own = found["top"]
    assert (reference["of"], own["of"]) == ("reference", onnx_file.name)
    assert [one["index"] for one in reference["classes"]] == list(order)
    assert [one["probability"] for one in reference["classes"]] == pytest.approx(
        list(probabilities[order])
    )
    assert [one["index"] for one in own["classes"]] == list(order)


@each_form
def test_other_forms(run: Run, tiny_toml: Path, image: Path, form: str) -> None:
    options, precision = FORMS[form]
    made = run.json("export", "--config", tiny_toml, *options)
    stages = stages_of(run, made["artifact"]["path"], image)
    assert [stage["stage"] for stage in stages] == LAYERS
    assert [stage["grid"] for stage in stages] == GRIDS
    assert all(stage["rel_l2"] < ALLOWED[precision] for stage in stages)
    # rounding is seen where it happens: from the first tokens on
    assert stages[1]["rel_l2"] > {"fp32": 1e-9, "fp16": 1e-5, "bf16": 1e-4}[precision]


def usual_blocks(width: int) -> list[tuple[str, list[int] | None, int]]:
    return [
        ("blocks.0 (sum after mlp)", [2, 2], width),
        ("blocks.1 (sum after mlp)", None, width),
    ]


# the backbone's stages: layer, grid, channels
BACKBONES: dict[str, list[tuple[str, list[int] | None, int]]] = {
    "transformer": usual_blocks(16),
    "se": usual_blocks(32),
    "ghost": usual_blocks(32),
    # the channels that a block appends, and what the transition between two stages hands on
    "dense": [
        ("blocks.0.dense_linear", [2, 2], 16),
        ("blocks.1.act", [2, 2], 24),
        ("blocks.2.dense_linear", None, 16),
    ],
}


@pytest.mark.parametrize("kind", BACKBONES)
def test_other_models(run: Run, image: Path, kind: str) -> None:
    model = {**OTHER_BACKBONES, "transformer": tiny_model("transformer")}[kind]
    Path("model.toml").write_text(model)
    run("export", "--config", "model.toml", "-o", "model.onnx", status=0)
    stages = stages_of(run, "model.onnx", image)
    assert [stage["stage"] for stage in stages[:4]] == LAYERS[:4]
    found = [(stage["stage"], stage["grid"], stage["channels"]) for stage in stages[4:-1]]
    assert found == BACKBONES[kind]
    assert all(0 < stage["rel_l2"] < ALLOWED["fp32"] for stage in stages[1:])


def test_fp8_is_seen_from_the_first_tokens_on(run: Run, onnx_file: Path, image: Path) -> None:
    stages = stages_of(run, quantised(run, onnx_file, image, "--type", "fp8"), image)
    assert [stage["grid"] for stage in stages] == GRIDS
    # E4M3 has 3 bits behind the point: up to 2**-4 for each number
    assert all(2**-8 < stage["rel_l2"] < 0.2 for stage in stages[1:])
    assert stages[0]["rel_l2"] == 0.0


@pytest.mark.parametrize("mode", ["static", pytest.param("dynamic", marks=pytest.mark.slow)])
def test_float_and_int8_side_by_side(run: Run, onnx_file: Path, image: Path, mode: str) -> None:
    path = quantised(run, onnx_file, image, "--mode", mode)
    words = ("inspect", onnx_file, path, "--features", image, "--plot", "a.png")
    found = run.json(*words, status=0)["features"]
    stages = found["stages"]
    floats, ints = stages[: len(LAYERS)], stages[len(LAYERS) :]
    assert {stage["artifact"] for stage in floats} == {onnx_file.name}
    assert {stage["artifact"] for stage in ints} == {"8.onnx"}
    assert [stage["grid"] for stage in ints] == GRIDS
    for one, other in zip(floats[1:], ints[1:], strict=True):
        assert one["rel_l2"] < ALLOWED["fp32"] < 1e-4 < other["rel_l2"] < 0.2
    assert [top["of"] for top in found["top"]] == ["reference", onnx_file.name, "8.onnx"]
    with Image.open("a.png") as picture:
        pixels = np.asarray(picture.convert("RGB"), np.int32)
    # labels, five columns; head, seven stages, foot; a hundred pixels an inch
    assert pixels.shape == (85 + 7 * 160 + 120, 210 + 5 * 160, 3)
    for column in range(5):
        left = 210 + column * 160
        assert (
            len(np.unique(pixels[85 : 85 + 5 * 160, left : left + 160].reshape(-1, 3), axis=0)) > 8
        )


def test_a_wrong_graph(run: Run, onnx_file: Path, image: Path, alter: Change) -> None:
    alter(onnx_file, turned("tokens.blocks.1.tail.mlp.fc2.weight"))
    stages = stages_of(run, onnx_file, image)
    errors = [stage["rel_l2"] for stage in stages]
    assert max(errors[:2]) < ALLOWED["fp32"]
    assert min(errors[2:]) > 1e-3


def test_infinity_is_told(run: Run, onnx_file: Path, image: Path, alter: Change) -> None:
    alter(onnx_file, with_value("position", (0, 2, 5), np.inf))
    found = run.json("inspect", onnx_file, "--features", image, status=0)["features"]
    stages = found["stages"]
    assert all(stage["rel_l2"] is not None for stage in stages[:3])
    assert (stages[3]["rel_l2"], stages[3]["note"]) == (None, "1 of 80 numbers are not finite")
    assert stages[6]["note"] == "10 of 10 numbers are not finite"
    assert found["top"][1] == {"of": onnx_file.name, "classes": []}
    with Image.open(found["plot"]) as picture:
        assert picture.width == 210 + 3 * 160


def test_what_has_no_tensor_is_told_and_not_drawn(
    run: Run, onnx_file: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "t2t_deploy.verify._layer_tensors._units", lambda manifest: {LAYERS[4]: None}
    )
    stage = {one["stage"]: one for one in stages_of(run, onnx_file, image)}[LAYERS[4]]
    assert (stage["grid"], stage["rel_l2"]) == (None, None)
    assert stage["note"] == "not comparable: the graph holds no tensor of it in its units"


def test_the_table_and_the_place(run: Run, onnx_file: Path, image: Path) -> None:
    done = run("inspect", onnx_file, "--features", image, status=0)
    assert "token block 1" in done.out and "backbone layer 2 of 2" in done.out
    assert f"token maps: artifacts/logs/{onnx_file.stem}.features.png" in done.out


# -- errors ------------------------------------------------------------------------------------


def test_no_artifact(image: Path) -> None:
    """Without one there is no model whose maps could be drawn; nothing is read or written."""
    with pytest.raises(UsageError) as refused:
        draw_features([], features="there is no such picture.png")
    assert str(refused.value) == ("no artifact is named; name one whose token maps shall be drawn")
    assert [path.name for path in Path().iterdir()] == [image.name]


def test_a_foreign_file(run: Run, onnx_file: Path, image: Path) -> None:
    shutil.copy(onnx_file, "theirs.onnx")
    done = run("inspect", "theirs.onnx", "--features", image, status=1)
    assert done.err.startswith("error: theirs.onnx has no manifest, so its weights and variant are")


def test_a_foreign_parent(run: Run, onnx_file: Path, image: Path, change_manifest: Change) -> None:
    change_manifest(onnx_file, weights={})
    done = run("inspect", onnx_file, "--features", image, status=1)
    assert done.err == (
        f"error: {onnx_file.name} was made from a file without manifest, so its reference is "
        "unknown; name a file that t2t-deploy exported\n"
    )


def test_weights_that_are_gone(run: Run, onnx_file: Path, workspace: Path, image: Path) -> None:
    shutil.rmtree(workspace / "weights")
    done = run("inspect", onnx_file, "--features", image, status=1)
    assert done.err.splitlines()[-1].startswith("error: ") and "weights" in done.err
    assert not (workspace / "logs").exists() or not list((workspace / "logs").glob("*.png"))


def test_an_engine(run: Run, engine_file: Path, image: Path) -> None:
    done = run("inspect", engine_file, "--features", image, status=1)
    assert done.err == (
        f"error: {engine_file.name} is an engine, which shows no tensors; name the ONNX file it is "
        "of\n"
    )


def test_artifacts_of_two_models(
    run: Run, onnx_file: Path, tiny: ModelConfig, tiny_toml: Path, image: Path
) -> None:
    save_weights(random_state_dict(tiny, seed=1), Path("other.safetensors"))
    form = ("--config", tiny_toml, "--checkpoint", "other.safetensors", "-o", "other.onnx")
    assert run("export", *form).status == 0
    done = run("inspect", onnx_file, "other.onnx", "--features", image, status=2)
    assert f"other.onnx is of another model than {onnx_file.name}; expected artifacts" in done.err


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("--plot", "a.png"), 2, "--plot draws the token maps of --features; give --features"),
        (("--features", "noise.png", "--plot", "a.jpg"), 2, "expected a path that ends in .png"),
        (("--features", "none.png"), 1, "cannot read the picture none.png: No such file"),
    ],
)
def test_wrong_words(
    run: Run, onnx_file: Path, image: Path, words: tuple[str, ...], status: int, message: str
) -> None:
    assert message in run("inspect", onnx_file, *words, status=status).err


def test_without_the_package(run: Run, onnx_file: Path, image: Path, bare_machine: None) -> None:
    missing = "matplotlib is not installed; this step needs it: pip install 't2t-deploy[plot]'"
    assert run("inspect", onnx_file, "--features", image, status=1).err == f"error: {missing}\n"
