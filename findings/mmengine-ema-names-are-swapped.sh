#!/usr/bin/env bash
# mmengine: with EMAHook a checkpoint's "ema_state_dict" holds the trained weights, "state_dict" the average.
#
# Guess: as in timm, where state_dict_ema is the moving average beside the trained state_dict, mmengine's
# ema_state_dict is the average, and state_dict is what the optimiser stepped.
# Seen: the hook exchanges both when it writes a checkpoint. state_dict is the average, under the model's
# plain names; ema_state_dict holds the trained weights under module.*, beside the hook's count of steps.
# Why it matters: a tool that prefers "the average" by its name exports the other weights, of the same
# names and shapes, and every later check passes: they are compared with themselves.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check mmengine==0.10.7 torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import logging

import mmengine
import torch
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import DataLoader

print("mmengine", mmengine.__version__, "torch", torch.__version__)


class Line(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, inputs, mode="loss"):
        return {"loss": (self.layer(inputs) - 5).square().mean()}


torch.manual_seed(0)
model = Line()
runner = Runner(
    model,
    work_dir="work",
    train_dataloader=DataLoader([{"inputs": torch.ones(1)}] * 8, batch_size=4),
    optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.05}},
    train_cfg={"by_epoch": False, "max_iters": 6},
    custom_hooks=[EMAHook(momentum=0.1)],
    default_hooks={"checkpoint": {"type": "CheckpointHook", "interval": 6, "by_epoch": False}},
    log_level=logging.ERROR,
)
steps = []


class Keep(mmengine.hooks.Hook):
    priority = "VERY_LOW"

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        steps.append(runner.model.layer.weight.detach().clone())


runner.register_hook(Keep())
runner.train()
saved = torch.load("work/iter_6.pth", map_location="cpu", weights_only=False)
trained = steps[-1]
plain = saved["state_dict"]["layer.weight"]
ema = saved["ema_state_dict"]["module.layer.weight"]
print("weight after the last step of the optimiser", round(float(trained), 4))
print('checkpoint["state_dict"]                    ', round(float(plain), 4))
print('checkpoint["ema_state_dict"]                ', round(float(ema), 4))
assert torch.equal(ema, trained)
assert abs(float(plain) - float(trained)) > 0.1
PYTHON
