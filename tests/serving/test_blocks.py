"""Blocks of images, the same in every run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from t2t_deploy._optional import is_installed
from t2t_deploy.commands._predict_across import OutputFolder
from t2t_deploy.errors import ArtifactError, MissingDependencyError, UsageError
from t2t_deploy.serving import ImageBlock, SkippedBlocks, blocks_to_do, check_address

IMAGES = [f"{index}.jpg" for index in range(10)]


def test_blocks_in_order() -> None:
    *blocks, end = blocks_to_do(iter(IMAGES), 4, "model", frozenset())
    assert blocks == [
        ImageBlock(0, ("0.jpg", "1.jpg", "2.jpg", "3.jpg")),
        ImageBlock(1, ("4.jpg", "5.jpg", "6.jpg", "7.jpg")),
        ImageBlock(2, ("8.jpg", "9.jpg")),
    ]
    assert end == SkippedBlocks(3, ())


def test_finished_blocks_are_skipped() -> None:
    first, second, third = (ImageBlock(i, tuple(IMAGES[i * 4 : i * 4 + 4])) for i in range(3))
    done = {first.name("model"), third.name("model"), third.name("other model")}
    assert list(blocks_to_do(IMAGES, 4, "model", done)) == [
        second,
        SkippedBlocks(3, (first.name("model"), third.name("model"))),
    ]
    assert len(list(blocks_to_do(IMAGES, 4, "third model", done))) == 4


def test_a_name_is_of_ordinal_content_and_identity() -> None:
    block = ImageBlock(7, ("a", "b"))
    same = ImageBlock(7, ("a", "b"))
    assert block.name("x") == same.name("x")
    assert block.name("x").startswith("00000007-") and len(block.name("x")) == 25
    others = [
        ImageBlock(7, ("a", "c")),
        ImageBlock(7, ("ab",)),
        ImageBlock(7, ("b", "a")),
        ImageBlock(7, ("a", os.fsdecode(b"b\xff"))),
    ]
    names = {block.name("x"), block.name("y"), *(other.name("x") for other in others)}
    assert len(names) == 6


def test_images_are_drawn_as_blocks_are_taken() -> None:
    drawn = 0

    def images() -> object:
        nonlocal drawn
        for drawn in range(1, 1_000_001):
            yield f"{drawn}.jpg"

    blocks = blocks_to_do(images(), 256, "model", frozenset())  # type: ignore[arg-type]  # a generator
    for count in range(1, 4):
        next(blocks)
        assert drawn == count * 256


@pytest.mark.parametrize(
    "address",
    ["local", "auto", "10.0.0.1:6379", "head.example:6379", "[::1]:6379", "ray://a:10001"],
)
def test_an_address_is_taken(address: str) -> None:
    check_address(address)


@pytest.mark.parametrize("address", ["model.onnx", "pictures", "a:b", "http://a:1", "", "a:1/x"])
def test_another_word_is_no_address(address: str) -> None:
    with pytest.raises(UsageError, match="expected local, auto or HOST:PORT"):
        check_address(address)


def test_an_output_of_another_run_is_refused(tmp_path: Path) -> None:
    settings = {"artifact_sha256": "1", "top": 5}
    identity = OutputFolder(tmp_path, (), settings).claim(["a", "b"], 256)
    assert OutputFolder(tmp_path, (), settings).claim(["a", "b"], 256) == identity
    assert json.loads((tmp_path / "run.json").read_text())["sources"] == ["a", "b"]
    for changed, sources, block, message in (
        ({"artifact_sha256": "2"}, ["a", "b"], 256, "its artifact_sha256 is '1', expected '2'"),
        ({"top": 1}, ["a", "b"], 256, "its top is 5, expected 1"),
        ({}, ["a"], 256, "its sources is "),
        ({}, ["a", "b"], 8, "its block is 256, expected 8"),
    ):
        with pytest.raises(ArtifactError, match=message):
            OutputFolder(tmp_path, (), settings | changed).claim(sources, block)
    (tmp_path / "run.json").unlink()
    with pytest.raises(ArtifactError, match=r"a folder predictions and no run\.json"):
        OutputFolder(tmp_path, (), settings).claim(["a", "b"], 256)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"run\.json cannot be read"):
        OutputFolder(tmp_path, (), settings).claim(["a", "b"], 256)


@pytest.mark.skipif(is_installed("ray"), reason="the extra `ray` is installed")
def test_predict_across_without_ray_says_what_to_install(tmp_path: Path) -> None:
    from t2t_deploy import predict_across

    (tmp_path / "a.jpg").touch()
    hint = r"ray is not installed; .* pip install 't2t-deploy\[ray\]'"
    with pytest.raises(MissingDependencyError, match=hint):
        predict_across(tmp_path / "m.onnx", str(tmp_path), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
