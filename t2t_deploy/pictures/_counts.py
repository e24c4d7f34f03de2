"""Which pictures of a set say little of what a model will see."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Annotated, TypeAlias

import numpy as np

from t2t_deploy._codec import Rule
from t2t_deploy._preparation import Preparation, Resize
from t2t_deploy.errors import counted

ENOUGH = 64
"""Distinct pictures below which a graph that falls short was calibrated on too few."""
# Levels of 255 that are taken as equal: what JPEG makes of one colour, or of a grey.
_SAME = 4
# A picture is enlarged where the input shows fewer of its pixels than this, each of them more than
# that many times as wide and high: CIFAR's 32x32 and MNIST's 28x28 at 224 are not, 16x16 is.
_FEW_PIXELS, _TIMES = 400, 10
# It is cropped where the input shows a smaller share than this of it.
_SHOWN = 0.1
# The share of a set that is worth a word; that of greys, of which any set of photographs has some.
_WORTH_A_WORD, _NEARLY_ALL = 0.1, 0.9

_Count: TypeAlias = Annotated[int, Rule(lambda n: n >= 0, "a whole number of at least 0")]


@dataclass(frozen=True, slots=True)
class PictureCounts:
    """How many pictures a model was shown, and how many of them say little, as it sees them.

    distinct: different from each other. flat: of one colour. colourless: of greys, shown to a model
    of three channels. enlarged: of so few pixels that each fills a hundred of the input's. cropped:
    of such a shape that less than a tenth is left.
    """

    pictures: _Count
    distinct: _Count
    flat: _Count
    colourless: _Count
    enlarged: _Count
    cropped: _Count

    def faults(self) -> list[str]:
        """What of it makes a poor set, a phrase each; a few such pictures among many do not."""
        found = [
            (self.pictures - self.distinct, "repeat others"),
            (self.flat, "of one colour"),
            (self.enlarged, f"enlarged more than {_TIMES} times"),
            (self.cropped, f"cropped to less than {_SHOWN:.0%}"),
        ]
        phrases = [
            f"{number} {words}"
            for number, words in found
            if number and number >= _WORTH_A_WORD * self.pictures
        ]
        if self.colourless > self.flat and self.colourless >= _NEARLY_ALL * self.pictures:
            phrases.append(f"{self.colourless} grey, as is right for a model that sees no colours")
        return phrases

    def note(self) -> str | None:
        """A line for people; None of a set without faults."""
        faults = self.faults()
        if not faults:
            return None
        return (
            f"of {counted(self.pictures, 'calibration picture')}, as the model sees them: "
            f"{'; '.join(faults)}: calibrate on pictures like those that it will see"
        )

    def advice(self, name: str) -> str | None:
        """What to do first where a graph of this name falls short; None: it is not the pictures."""
        faults = self.faults()
        if not faults and self.distinct >= ENOUGH:
            return None
        shown = f" ({'; '.join(faults)})" if faults else ""
        return (
            f"{name} was calibrated on {counted(self.distinct, 'distinct picture')}{shown}: first "
            f"calibrate on {ENOUGH} or more like those the model will see"
        )


@dataclass(slots=True)
class PictureCounter:
    """Counts pictures as they are prepared. seen: digest of its pixels -> how many are the same."""

    flat: _Count = 0
    colourless: _Count = 0
    enlarged: _Count = 0
    cropped: _Count = 0
    seen: dict[str, _Count] = field(default_factory=dict)

    def add(self, size: tuple[int, int], pixels: np.ndarray, preparation: Preparation) -> None:
        """Count a picture. size: (width, height) of its file; pixels: (H, W, C) uint8, prepared."""
        digest = hashlib.blake2b(pixels.tobytes(), digest_size=8).hexdigest()
        self.seen[digest] = self.seen.get(digest, 0) + 1
        self.flat += int(np.ptp(pixels, axis=(0, 1)).max()) <= _SAME
        if preparation.channels == 3:
            self.colourless += int(np.ptp(pixels, axis=2).max()) <= _SAME
        (rows, columns), (width, height) = preparation.size, preparation.resized_size(*size)
        # of the resized picture, and of the file's pixels for each of the resized ones
        share, ratio = rows * columns / (width * height), size[0] * size[1] / (width * height)
        shown = rows * columns * ratio
        self.enlarged += shown < _FEW_PIXELS and ratio * _TIMES**2 < 1
        self.cropped += preparation.resize is Resize.SHORTER and share < _SHOWN

    def counts(self) -> PictureCounts:
        """Those of the pictures so far."""
        return PictureCounts(
            sum(self.seen.values()),
            len(self.seen),
            self.flat,
            self.colourless,
            self.enlarged,
            self.cropped,
        )
