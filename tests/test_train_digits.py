"""The trainer of the digits: what makes a run repeatable, and what it may not change."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import train_digits
from digits import Digits, digits_split
from train_digits import Schedule, moved, new_model, right_of, sinusoids, train

from t2t_deploy.model import ModelConfig, T2TViT, TokensType, load_checkpoint

from .small import tiny_model

CONFIG = ModelConfig("tiny", TokensType.PERFORMER, 16, 1, 2, 2.0, 16, image_size=32, num_classes=10)


@pytest.fixture(scope="module")
def few() -> Digits:
    part = digits_split().train
    return dataclasses.replace(
        part, indices=part.indices[:128], pixels=part.pixels[:128], labels=part.labels[:128]
    )


def trained(part: Digits, seed: int, kind: TokensType = TokensType.PERFORMER) -> T2TViT:
    config = dataclasses.replace(CONFIG, tokens_type=kind)
    return train(config, part, epochs=2, rate=1e-3, seed=seed)


@pytest.mark.parametrize("kind", TokensType)
def test_a_seed_gives_the_same_weights(few: Digits, kind: TokensType) -> None:
    first, again, other = (trained(few, seed, kind).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(tensor, again[key]) for key, tensor in first.items())
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_frozen_tensors_stay_and_the_others_learn(few: Digits) -> None:
    torch.manual_seed(0)
    before, after = new_model(CONFIG).state_dict(), trained(few, 0).state_dict()
    kept = {key for key, tensor in before.items() if torch.equal(tensor, after[key])}
    assert kept == {"pos_embed", *(f"tokens_to_token.attention{n}.w" for n in (1, 2))}


def test_the_performers_features_are_orthogonal() -> None:
    """Rows of norm sqrt(m), as the released code draws them."""
    w = new_model(CONFIG).state_dict()["tokens_to_token.attention1.w"]
    torch.testing.assert_close(w @ w.T, 8 * torch.eye(8), rtol=1e-5, atol=1e-5)


def test_positions() -> None:
    found = sinusoids(5, 6)
    for position, channel in ((3, 2), (4, 5), (0, 0), (0, 1)):
        angle = position / 10000 ** (2 * (channel // 2) / 6)
        wanted = math.cos(angle) if channel % 2 else math.sin(angle)
        assert float(found[position, channel]) == pytest.approx(wanted, abs=1e-6)


def test_the_learning_rate() -> None:
    schedule = Schedule(2e-3, 10, 110)
    rates = [schedule.at(step) for step in range(110)]
    assert rates[0] == pytest.approx(2e-4)
    assert rates[9] == rates[10] == max(rates) == 2e-3
    assert rates[60] == pytest.approx(1e-3)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 1e-6


def test_pictures_move_a_little(few: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = torch.from_numpy(few.inputs(32))
    found = moved(pictures, torch.Generator().manual_seed(0))
    assert found.shape == pictures.shape
    distance = (found - pictures).flatten(1).norm(dim=1) / pictures.flatten(1).norm(dim=1)
    assert float(distance.min()) > 0.05 and float(distance.max()) < 1.2
    # the border is black, not the grey that zero is in a normalised picture
    assert float(found.min()) == pytest.approx(float(pictures.min()), abs=1e-3)
    for name in ("TURN_DEGREES", "SCALE", "SHIFT"):
        monkeypatch.setattr(train_digits, name, 0.0)
    still = moved(pictures, torch.Generator().manual_seed(0))
    torch.testing.assert_close(still, pictures, rtol=1e-4, atol=1e-4)


def test_what_is_right(few: Digits) -> None:
    model = new_model(CONFIG).eval()
    assert model.head is not None
    model.head.weight.data.zero_()
    model.head.bias.data.copy_(torch.eye(10)[3])
    assert right_of(model, few) == int((few.labels == 3).sum()) > 0


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "tiny.toml"
    config.write_text(tiny_model(depth=1))
    monkeypatch.setattr(train_digits, "BATCH", 512)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode: None)
    files = []
    for folder in ("a", "b"):
        files.append(tmp_path / folder / "tiny.pth.tar")
        words = ["train_digits", str(config), "-o", str(files[-1]), "--epochs", "1"]
        monkeypatch.setattr("sys.argv", words)
        train_digits.main()
        assert " of 600 test pictures right (" in capsys.readouterr().out
    assert files[0].read_bytes() == files[1].read_bytes()
    assert load_checkpoint(files[0], config=CONFIG).container == "state_dict_ema"


def test_written_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train_digits", "--write-images", str(tmp_path)])
    train_digits.main()
    for name, count in (("calibration", 100), ("test", 600)):
        folder = tmp_path / name
        assert sorted(path.name for path in folder.iterdir()) == list("0123456789")
        assert len(list(folder.rglob("*.png"))) == count
    part = digits_split().test
    written = sorted(int(path.stem) for path in (tmp_path / "test").rglob("*.png"))
    np.testing.assert_array_equal(written, part.indices)


@pytest.mark.parametrize("words", [[], ["x.toml"], ["-o", "x.pth.tar"]])
def test_wrong_usage(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train_digits", *words])
    with pytest.raises(SystemExit, match="2"):
        train_digits.main()
