#!/usr/bin/env bash
# Pillow: a TIFF whose zero is white is turned upright with 8 bits a pixel, and left inverted with 16.
#
# Guess: PhotometricInterpretation 0 (WhiteIsZero), as scanners and X-ray software write it, is undone
# for every depth, so that the same grey picture opens as the same picture from 8 and from 16 bits.
# Seen: of 8 bits black is 0 after opening. Of 16 bits the stored values come back as they lie in
# the file: black is 65535, and Image.open says nothing. The tag is still there to be read.
# Why it matters: a classifier of radiographs is shown negatives wherever the file has 16 bits, although
# the 8-bit copies of the same pictures, on which one tries it, are right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0 tifffile==2026.3.3 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import PIL
import tifffile
from PIL import Image

print("pillow", PIL.__version__, "tifffile", tifffile.__version__)
grey = np.linspace(0, 255, 64).reshape(8, 8).astype(np.uint8)  # 0 is black
tifffile.imwrite("8.tif", 255 - grey, photometric="miniswhite")
tifffile.imwrite("16.tif", 65535 - grey.astype(np.uint16) * 257, photometric="miniswhite")
found = {}
for bits in (8, 16):
    with Image.open(f"{bits}.tif") as image:
        values = np.asarray(image)
        found[bits] = values // (257 if bits == 16 else 1)
        print(f"{bits} bits: mode {image.mode}, tag 262 is {image.tag_v2[262]}, black opens as {values[0, 0]}")
    assert (tifffile.imread(f"{bits}.tif")[0, 0] == (1 << bits) - 1)
print("the 8-bit picture is right:", bool((found[8] == grey).all()))
print("the 16-bit picture is its negative:", bool((found[16] == 255 - grey).all()))
assert (found[8] == grey).all()
assert (found[16] == 255 - grey).all()
PYTHON
