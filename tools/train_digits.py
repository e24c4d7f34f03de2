"""Train a small T2T-ViT on scikit-learn's handwritten digits, on one core of a CPU.

    python tools/train_digits.py tests/digits/performer.toml -o tests/digits/performer.pth.tar
    python tools/train_digits.py --write-images build/digits

The configuration gives the model's dimensions. Written is a checkpoint in the layout of the
released ones, with the moving average's weights; printed is its accuracy on the test part.
--write-images writes the pictures of the calibration and test parts as PNG files in folders named
by class, for `t2t-deploy evaluate --images` and the like.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from digits import Digits, digits_split
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from t2t_deploy.model import ModelConfig, PerformerBlock, T2TViT, config_from_toml

BATCH = 64
WARM_UP_EPOCHS = 5
WEIGHT_DECAY = 0.05
CLIP_NORM = 1.0
EMA_DECAY = 0.98  # a memory of 50 steps, or three epochs
# largest change of a training picture, either way
TURN_DEGREES = 15.0
SCALE = 0.12
SHIFT = 0.12  # of the picture's side


@dataclass(frozen=True, slots=True)
class Schedule:
    """Linear warm-up to a learning rate, then a cosine to zero, step by step."""

    learning_rate: float
    warm_up_steps: int
    steps: int

    def at(self, step: int) -> float:
        """Learning rate of a step."""
        if step < self.warm_up_steps:
            return self.learning_rate * (step + 1) / self.warm_up_steps
        done = (step - self.warm_up_steps) / max(self.steps - self.warm_up_steps, 1)
        return self.learning_rate * (1 + math.cos(math.pi * done)) / 2


def new_model(config: ModelConfig) -> T2TViT:
    """A model before training, initialised as the authors' is."""
    model = T2TViT(config)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, PerformerBlock):
            nn.init.orthogonal_(module.w)
            module.w.data *= math.sqrt(module.num_features)
    nn.init.trunc_normal_(model.cls_token, std=0.02)
    model.pos_embed.data.copy_(sinusoids(model.pos_embed.shape[1], config.embed_dim))
    return model


def sinusoids(positions: int, width: int) -> Tensor:
    """The fixed position table, (positions, width). Source: Attention Is All You Need, 3.5."""
    position = torch.arange(positions, dtype=torch.float64)[:, None]
    channel = torch.arange(width)
    angle = position / 10000 ** (2 * (channel // 2) / width)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()


def moved(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures (n, 3, S, S), each turned, scaled and shifted a little; the border is repeated."""
    turn, scale, right, down = (torch.rand(4, len(pictures), generator=generator) * 2 - 1).unbind()
    turn = turn * math.radians(TURN_DEGREES)
    size = 1 + SCALE * scale
    cos, sin = turn.cos() / size, turn.sin() / size
    # grid coordinates span 2
    rows = torch.stack((cos, -sin, 2 * SHIFT * right, sin, cos, 2 * SHIFT * down), dim=1)
    grid = functional.affine_grid(rows.view(-1, 2, 3), list(pictures.shape), align_corners=False)
    return functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def batches(count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Shuffled indices; a short last batch is left out."""
    order = torch.randperm(count, generator=generator)
    yield from order[: count // BATCH * BATCH].split(BATCH)


def train(config: ModelConfig, part: Digits, *, epochs: int, rate: float, seed: int) -> T2TViT:
    """A model trained on a part: the moving average of its weights."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = new_model(config)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY))
    learned = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in learned if p.ndim == 2]
    others = [p for p in learned if p.ndim != 2]
    optimiser = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": WEIGHT_DECAY},
            {"params": others, "weight_decay": 0.0},
        ]
    )
    pictures = torch.from_numpy(part.inputs(config.image_hw[0]))
    labels = torch.from_numpy(part.labels)
    steps = len(part) // BATCH
    schedule = Schedule(rate, WARM_UP_EPOCHS * steps, epochs * steps)
    step = 0
    for epoch in range(epochs):
        total = 0.0
        for chosen in batches(len(part), generator):
            for group in optimiser.param_groups:
                group["lr"] = schedule.at(step)
            logits = model(moved(pictures[chosen], generator))
            loss = functional.cross_entropy(logits, labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(learned, CLIP_NORM)
            optimiser.step()
            average.update_parameters(model)
            total += loss.item()
            step += 1
        if (epoch + 1) % 10 == 0:
            print(f"epoch {epoch + 1} of {epochs}: training loss {total / steps:.4f}", flush=True)
    averaged = average.module
    assert isinstance(averaged, T2TViT)
    return averaged.eval()


def right_of(model: T2TViT, part: Digits) -> int:
    """How many pictures of a part the model gets right."""
    with torch.inference_mode():
        logits = model(torch.from_numpy(part.inputs(model.config.image_hw[0])))
    return int((logits.argmax(dim=1) == torch.from_numpy(part.labels)).sum())


def main() -> None:
    """Train and write what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", nargs="?", type=Path, help="TOML file of the dimensions")
    parser.add_argument("-o", dest="output", type=Path, help="checkpoint to write")
    parser.add_argument("--write-images", type=Path, metavar="DIR")
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--rate", type=float, default=2e-3, help="largest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if (options.config is None) != (options.output is None):
        parser.error("training takes a configuration and -o CHECKPOINT together")
    if options.config is None and options.write_images is None:
        parser.error("nothing to do: give a configuration and -o CHECKPOINT, or --write-images DIR")
    split = digits_split()
    if options.write_images is not None:
        split.calibration.write(options.write_images / "calibration")
        split.test.write(options.write_images / "test")
    if options.config is None:
        return
    # with more threads, sums depend on how they are shared out
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    started_s = time.monotonic()
    config = config_from_toml(options.config)
    model = train(config, split.train, epochs=options.epochs, rate=options.rate, seed=options.seed)
    right = right_of(model, split.test)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict_ema": model.state_dict()}, options.output)
    print(
        f"{config.name}: {right} of {len(split.test)} test pictures right "
        f"({right / len(split.test):.2%}), {time.monotonic() - started_s:.0f} s"
    )


if __name__ == "__main__":
    main()
