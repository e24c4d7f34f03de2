#!/usr/bin/env bash
# Pillow 13 resizes some pictures down first and then across; 12.3 goes across first always.
#
# Guess: the pass across comes first for every picture, so that resizing one axis after the other gives the bytes
# of one call, on each release. The order matters, since there are 8 bits between the two passes.
# Seen: in 13.0.0 the pass down is first where it takes away rows, and more than twice as many as the other takes
# away columns. The same call on the same noise, 60 x 900 pixels to 224 x 300, differs between the two releases by
# 13 levels of 255, since what a bicubic filter overshoots is cut off after the first pass.
# Why it matters: portraits become other pixels after an upgrade, landscapes do not. What resizes only a window of a
# very large picture, or resizes in a browser as Pillow does, has to know the rule.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for release in 12.3.0 13.0.0; do
  python3 -m venv "$folder/$release"
  "$folder/$release/bin/pip" install --quiet --disable-pip-version-check "pillow==$release" numpy==2.4.6
  "$folder/$release/bin/python" - "$folder/$release.npy" <<'EOF'
import sys

import numpy as np
import PIL
from PIL import Image

rng, bicubic = np.random.default_rng(0), Image.Resampling.BICUBIC


def resized(width, height, *sizes):
    """Noise of a size, resized to each of some sizes in turn."""
    image = Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3)).astype(np.uint8))
    for size in sizes:
        image = image.resize(size, bicubic)
    return np.asarray(image)


counted = followed = down_first = 0
for w, h, width, height in rng.integers(4, 90, (3000, 4)).tolist():
    if w != width and h != height:
        once = resized(w, h, (width, height))
        down = np.array_equal(once, resized(w, h, (w, height), (width, height)))
        assert down != np.array_equal(once, resized(w, h, (width, h), (width, height)))
        counted, down_first = counted + 1, down_first + down
        followed += down == (h > height and h - height > 2 * (w - width))
print(f"Pillow {PIL.__version__}: down first for {down_first} of {counted} sizes; {followed} follow the rule")
np.save(sys.argv[1], resized(60, 900, (224, 300)))
if not (down_first == 0 if PIL.__version__ < "13" else followed == counted and 0 < down_first < counted):
    sys.exit("changed: see the head of this file")
EOF
done
"$folder/13.0.0/bin/python" - "$folder" <<'EOF'
import sys

import numpy as np

before, after = (np.load(f"{sys.argv[1]}/{release}.npy").astype(int) for release in ("12.3.0", "13.0.0"))
largest = np.abs(before - after).max()
print(f"60 x 900 to 224 x 300: up to {largest} levels apart")
if largest < 10:
    sys.exit("changed: see the head of this file")
EOF
