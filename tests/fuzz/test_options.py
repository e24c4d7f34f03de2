"""Whatever words, shapes or values there are: an answer, or a refusal in one line."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from t2t_deploy.cli._main import cli
from t2t_deploy.engine import parse_sm
from t2t_deploy.errors import ConfigError, DeployError, UsageError
from t2t_deploy.model import Backbone, ModelConfig, SoftSplit, TokensType, config_from_dict
from t2t_deploy.types import GraphIO, ShapeProfile

from ..program import called

pytestmark = pytest.mark.usefixtures("empty_folder")
FEW = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)  # fmt: skip
MANY = settings(FEW, max_examples=5_000)

numbers = some.one_of(some.integers(-(10**20), 10**20), some.integers(-2, 40)).map(str)
texts = some.one_of(
    some.text(max_size=12),
    some.sampled_from(["", "1,2", "1:8:32", "8:1", "auto", "fp32", "none", "-1", "..", "\x00"]),
)
words = some.one_of(numbers, texts)


def options_of(name: str) -> list[str]:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    given = (one for one in command.params if isinstance(one, click.Option))
    options = [option for one in given for option in one.opts]
    return [option for option in options if option != "--ray"]  # would start a cluster


COMMANDS = (
    *("export", "calibrate", "quantize", "build-trt", "verify", "bench", "predict", "inspect"),
    "package",
)
OPTIONS = {name: options_of(name) for name in COMMANDS}


@some.composite
def command_lines(draw: Any) -> list[str]:
    command = draw(some.sampled_from(sorted(OPTIONS)))
    line: list[str] = [command]
    for option in draw(some.lists(some.sampled_from(OPTIONS[command]), max_size=4)):
        line.append(option)
        if draw(some.booleans()):
            line.append(draw(words))
    line += draw(some.lists(words, max_size=2))
    return line


def check_command_line(line: list[str]) -> None:
    if line[0] == "export":
        line = [*line, "--checkpoint", "none.pth"]  # so that none of them exports a model
    done = called(*line, "--workspace", "none")  # nothing to work on, and nothing is made
    assert done.status in (0, 1, 2), (line, done)
    if done.status:
        errors = [one for one in done.err.splitlines() if one.startswith("error: ")]
        assert len(errors) == 1, (line, done.err)
        assert "Traceback" not in done.err


@FEW
@given(command_lines())
def test_command_lines(line: list[str]) -> None:
    check_command_line(line)


@pytest.mark.slow
@MANY
@given(command_lines())
def test_many_command_lines(line: list[str]) -> None:
    check_command_line(line)


# -- descriptions and shapes ---------------------------------------------------------------------

anything = some.recursive(
    some.one_of(
        some.none(), some.booleans(), some.integers(), some.floats(), some.text(max_size=8),
        some.sampled_from([1, 2, 16, 32, 64, 224, "performer", "transformer", "dense", "se"]),
    ),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
KEYS = tuple(ModelConfig.__dataclass_fields__)
PLAIN = {
    "name": "a", "tokens_type": "performer", "embed_dim": 16, "depth": 2, "num_heads": 2,
    "mlp_ratio": 2.0, "token_dim": 16, "image_size": 32, "num_classes": 10,
}  # fmt: skip


def check_message(err: DeployError) -> None:
    assert "\n" not in str(err)


@settings(FEW, max_examples=100)
@given(some.dictionaries(some.sampled_from(KEYS) | some.text(max_size=6), anything, max_size=4))
def test_descriptions(changes: dict[str, Any]) -> None:
    try:
        config = config_from_dict(PLAIN | changes)
    except ConfigError as err:
        check_message(err)
        return
    assert config_from_dict(config.to_dict()) == config


sides = some.integers(-1, 9)


@settings(FEW, max_examples=300)
@given(
    splits=some.tuples(*(some.tuples(sides, sides, sides),) * 3),
    image_size=some.integers(1, 300),
    embed_dim=some.integers(1, 64),
    depth=some.integers(1, 5),
    heads=some.integers(1, 8),
    backbone=some.sampled_from(Backbone),
    tokens=some.sampled_from(TokensType),
)
def test_shapes(
    splits: Any, image_size: int, embed_dim: int, depth: int, heads: int, backbone: Any, tokens: Any
) -> None:
    try:
        config = ModelConfig(
            "a", tokens, embed_dim, depth, heads, 3.0, backbone=backbone, image_size=image_size,
            splits=tuple(SoftSplit(*split) for split in splits),  # type: ignore[arg-type]  # three
        )  # fmt: skip
    except ConfigError as err:
        check_message(err)
        return
    grids = config.grids()
    assert config.num_patches == math.prod(grids[2]) > 0
    assert all(width % heads == 0 for width in config.block_widths())


@settings(FEW, max_examples=300)
@given(words)
def test_words_that_are_parsed(word: str) -> None:
    for parse in (ShapeProfile.parse, parse_sm, lambda text: GraphIO.of_details({"tail": text})):
        with contextlib.suppress(DeployError):
            parse(word)
    with contextlib.suppress(UsageError):
        profile = ShapeProfile.parse(word)
        assert str(ShapeProfile.parse(str(profile))) == str(profile)
