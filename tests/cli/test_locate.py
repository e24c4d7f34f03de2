"""Wrong graphs: `verify --locate` names the layer that is wrong, and `verify` exits 3."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from t2t_deploy.commands import export_onnx
from t2t_deploy.model import config_from_toml, random_state_dict, save_weights
from t2t_deploy.workspace import Workspace

from ..small import tiny_model
from .command import Change, Run, manifest_of
from .graphs import (
    FORMS,
    Alter,
    each_form,
    edited,
    scaled,
    some_slow,
    store,
    stored,
    turned,
    with_value,
)

MODEL = tiny_model(depth=3)


# -- how a graph becomes wrong -----------------------------------------------------------------


def flipped(name: str, bit: int = 23, row: int = 3, column: int = 5) -> Alter:
    """One bit of one float32 weight; bit 23 is the lowest of the exponent: it doubles or halves."""

    def flip(values: np.ndarray) -> np.ndarray:
        values[row, column : column + 1].view(np.uint32)[0] ^= np.uint32(1 << bit)
        return values

    return edited(name, flip)


def swapped(block: int) -> Alter:
    """The weights of queries and keys."""
    q, k = (f"blocks.{block}.attn.{part}.weight" for part in "qk")

    def alter(model: onnx.ModelProto) -> None:
        queries, keys = stored(model, q), stored(model, k)
        store(model, q, keys)
        store(model, k, queries)

    return alter


def rows_moved(model: onnx.ModelProto) -> None:
    """The grid of the position table column by column; the class row stays."""
    position = stored(model, "position")
    grid = position[:, 1:].reshape(1, 2, 2, -1).transpose(0, 2, 1, 3)
    store(model, "position", np.concatenate((position[:, :1], grid.reshape(1, 4, -1)), axis=1))


def without_norm_epsilon(scope: str) -> Alter:
    def alter(model: onnx.ModelProto) -> None:
        (node,) = (n for n in model.graph.node if n.name == f"{scope}/LayerNormalization")
        (epsilon,) = (a for a in node.attribute if a.name == "epsilon")
        epsilon.f = 0.0

    return alter


def constant_set(value: float, where: Callable[[float], bool], op: str, scope: str) -> Alter:
    """Replace the one constant that an operator of a module reads."""

    def alter(model: onnx.ModelProto) -> None:
        graph = model.graph
        made = {n.output[0]: n.attribute[0].t for n in graph.node if n.op_type == "Constant"}
        made |= {t.name: t for t in graph.initializer}
        found = []
        for node in graph.node:
            for index, name in enumerate(node.input):
                if node.op_type != op or not node.name.startswith(scope) or name not in made:
                    continue
                number = numpy_helper.to_array(made[name])
                if number.size == 1 and where(float(number.reshape(()))):
                    found.append((node, index, number))
        ((node, index, number),) = found
        changed = numpy_helper.from_array(np.full_like(number, value), "changed")
        graph.initializer.append(changed)
        node.input[index] = "changed"

    return alter


T1, T2 = "tokens_to_token.attention1", "tokens_to_token.attention2"
BLOCK = "blocks.1.attn"
WRONG = {
    "bit in block 1 of the tokens": (flipped("tokens.blocks.0.tail.mlp.fc2.weight"), f"{T1}.mlp.2"),
    "bit in a soft split": (flipped("tokens.splits.0.weights.norms"), f"{T1}.kqv (keys)"),
    "bit in a middle block": (flipped("blocks.1.mlp.fc1.weight"), "blocks.1.mlp.fc1"),
    "bit in the head": (flipped("head.weight"), "head"),
    "q and k swapped in the first block": (swapped(0), "blocks.0.attn.qkv (queries)"),
    "q and k swapped in the last block": (swapped(2), "blocks.2.attn.qkv (queries)"),
    "k transposed": (turned(f"{BLOCK}.k.weight"), f"{BLOCK}.qkv (keys)"),
    "projection of block 2 of the tokens transposed": (
        turned("tokens.blocks.1.proj_weight"),
        f"{T2} (sum after attention)",
    ),
    "projection of a middle block transposed": (
        turned(f"{BLOCK}.proj.weight"),
        f"{BLOCK}.proj",
    ),
    "projection of the last block transposed": (
        turned("blocks.2.attn.proj.weight"),
        "blocks.2.attn.proj",
    ),
    "attention scale of the width, not of the head": (
        scaled(f"{BLOCK}.q.weight", 0.5**0.5),
        f"{BLOCK}.qkv (queries)",
    ),
    "positions column by column": (rows_moved, "pos_embed"),
    "no epsilon in the first soft split": (
        constant_set(0.0, lambda x: 9e-6 < x < 1.1e-5, "Add", "/tokens/splits.0/"),
        f"{T1}.kqv (keys)",
    ),
    "no epsilon in a performer": (
        constant_set(-1e30, lambda x: -17 < x < -16, "Sub", "/tokens/blocks.0/"),
        f"{T1} (sum after attention)",
    ),
    "no epsilon in a middle block's norm": (
        without_norm_epsilon("/blocks.1/norm2"),
        "blocks.1.norm2",
    ),
}


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with one float32 export, of weights whose performer feels its epsilon."""
    folder = tmp_path_factory.mktemp("right")
    config = folder / "small.toml"
    config.write_text(MODEL)
    state_dict = random_state_dict(config_from_toml(config), seed=0)
    state_dict["tokens_to_token.attention1.kqv.weight"][:32] *= 3  # keys and queries
    weights = folder / "weights.safetensors"
    save_weights(state_dict, weights)
    workspace = Workspace(folder / "artifacts")
    export_onnx(config=config, checkpoint=weights, workspace=workspace)
    return workspace.root


@pytest.fixture
def exported(right: Path, empty_folder: Path) -> Path:
    """The one export of `./artifacts`, a copy."""
    shutil.copytree(right, empty_folder / "artifacts")
    (path,) = (empty_folder / "artifacts/onnx").glob("*.onnx")
    return path


# one of each way to be wrong; the others are much like them
FAST = (
    "bit in a middle block",
    "q and k swapped in the first block",
    "projection of block 2 of the tokens transposed",
    "attention scale of the width, not of the head",
    "positions column by column",
    "no epsilon in the first soft split",
    "no epsilon in a performer",
    "no epsilon in a middle block's norm",
)
# the logits are within their tolerance: only the layers show it
HIDDEN = "no epsilon in a middle block's norm"


@pytest.mark.parametrize("name", some_slow(WRONG, FAST))
def test_the_wrong_layer_is_named(run: Run, exported: Path, alter: Change, name: str) -> None:
    wrong, layer = WRONG[name]
    alter(exported, wrong)
    (result,) = run.json("verify", exported, "--locate", status=3)["results"]
    if name == HIDDEN:
        assert result["status"] == "passed"
    else:
        assert result["status"] == "failed"
        assert result["reason"].startswith("relative error ")
    found = result["located"]
    assert found["status"] == "failed"
    assert found["first"]["layer"] == layer
    # each layer is given what the file's own gave: nothing behind the fault is called wrong
    # but for the keys of a swap, and sums of a token block, which go past its layers
    module = layer.partition(" (")[0]
    near = ".".join(module.split(".")[:2]) if module.startswith("tokens") else module
    differing = [one["layer"] for one in found["layers"] if one["differs"]]
    assert all(one.startswith(near) for one in differing), differing
    if name == "no epsilon in the first soft split":
        assert found["first"]["on"] == "cream"
        # its windows differ by less than the epsilon counts: elsewhere it is a thousand times less
        assert found["first"]["rel_l2"] > 0.1, found["first"]
    layers = [compared["layer"] for compared in found["layers"]]
    index = layers.index(layer)
    before = found["last_agreeing"]
    assert (None if before is None else before["layer"]) == (layers[index - 1] if index else None)
    assert found["reason"].startswith(f"{layer} differs first, on ")
    kept = manifest_of(exported)["details"]["located"]
    assert kept["first"]["layer"] == layer
    assert run("bench", exported).status == 1


def test_a_right_graph_has_no_wrong_layer(run: Run, exported: Path) -> None:
    (result,) = run.json("verify", exported, "--locate", status=0)["results"]
    found = result["located"]
    assert (found["status"], found["first"], found["last_agreeing"]) == ("passed", None, None)
    assert found["pictures"][0] == "noise 0" and found["pictures"][-1] == "cream"
    # 3 blocks of 12 layers, 2 token blocks of 8, project, positions, norm, head
    assert len(found["layers"]) == 3 * 12 + 2 * 8 + 4
    assert found["not_compared"] == [
        f"tokens_to_token.attention{block}{word}"
        for block in (1, 2)
        for word in (".kqv (values)", " (attention)", ".proj")
    ]


def test_export_finds_a_wrong_exporter(run: Run, wrong_exporter: Change) -> None:
    """The message names the command that finds the layer, and the command finds it."""
    wrong_exporter(turned("blocks.1.attn.proj.weight"))
    Path("small.toml").write_text(MODEL)
    done = run("export", "--config", "small.toml", "--json", status=3)
    assert done.json["verification"]["status"] == "failed"
    path = done.json["artifact"]["path"]
    assert done.err.splitlines()[-1].endswith(f"; which layer: t2t-deploy verify --locate {path}")
    (result,) = run.json("verify", "--locate", path, status=3)["results"]
    assert result["located"]["first"]["layer"] == "blocks.1.attn.proj"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_stored_nan_is_named(run: Run, exported: Path, alter: Change, value: float) -> None:
    alter(exported, with_value("blocks.1.mlp.fc1.weight", (2, 3), value))
    (result,) = run.json("verify", exported, "--locate", status=3)["results"]
    stored_in = "NaN or infinity is stored in blocks.1.mlp.fc1.weight"
    assert result["reason"].endswith(f"; {stored_in}")
    found = result["located"]
    assert found["stored_non_finite"] == ["blocks.1.mlp.fc1.weight"]
    assert found["reason"].startswith(f"{stored_in}; blocks.1.mlp.fc1 differs first, on noise 0 (")
    assert found["first"]["rel_l2"] is None and found["first"]["non_finite"] > 0


def test_a_computed_infinity_is_named(run: Run, exported: Path, alter: Change) -> None:
    """A LayerNorm whose scale is finite, and so large that float32 ends."""
    alter(exported, scaled("blocks.1.norm1.weight", 1e38))
    (result,) = run.json("verify", exported, status=3)["results"]
    assert " are NaN or infinite, first on noise 0; " in result["reason"]
    assert " numbers are so first in tensor /blocks.1/" in result["reason"]


LAYERS = dict(zip(FORMS, (1 + 56, 54, 56, 62), strict=True))


@each_form
def test_right_graphs_of_other_forms(run: Run, form: str) -> None:
    options, _ = FORMS[form]
    Path("small.toml").write_text(MODEL)
    assert run("export", "--config", "small.toml", *options).status == 0
    (result,) = run.json("verify", "--locate", "--nodewise", status=0)["results"]
    assert result["located"]["status"] == "passed"
    assert len(result["located"]["layers"]) == LAYERS[form]
    # node by node is about the graph inside its ends
    assert result["nodewise"]["status"] == "passed"


def test_wrong_preprocessing(run: Run, alter: Change) -> None:
    Path("small.toml").write_text(MODEL)
    done = run.json("export", "--config", "small.toml", "--embed-preprocess")
    path = Path(done["artifact"]["path"])
    alter(path, edited("ends/factor", lambda values: values[::-1]))
    found = run.json("verify", path, "--locate", status=3)["results"][0]["located"]
    assert found["first"]["layer"] == "preprocessing"
    assert found["last_agreeing"] is None
    # each layer is given what the file's own gave: those behind it are right
    assert [layer["layer"] for layer in found["layers"] if layer["differs"]] == ["preprocessing"]
