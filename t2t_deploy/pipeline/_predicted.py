"""What is predicted of a picture."""

from __future__ import annotations

from dataclasses import dataclass

from t2t_deploy.serving import shown_name


@dataclass(frozen=True, slots=True)
class RankedClass:
    """A class of a picture. label: None where nothing names the classes."""

    index: int
    label: str | None
    probability: float


@dataclass(frozen=True, slots=True)
class PredictedPicture:
    """A picture and its classes, best first, or why it has none.

    image: its path; bytes that are no UTF-8 are surrogates in it.
    """

    image: str
    top: tuple[RankedClass, ...] = ()
    error: str | None = None

    @property
    def shown(self) -> str:
        """Its path as it is printed and written."""
        return shown_name(self.image)
