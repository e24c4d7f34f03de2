"""How commands report progress, whoever shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Progress(Protocol):
    """Receives steps, notes and progress."""

    def step(self, text: str) -> None:
        """A new piece of work begins."""

    def note(self, text: str) -> None:
        """Something the user should know."""

    def progress(self, text: str, done: int, total: int) -> None:
        """How far the current piece of work is."""


@dataclass(frozen=True, slots=True)
class Named:
    """Progress of a part, whose name begins what is said."""

    inner: Progress
    name: str

    def step(self, text: str) -> None:
        self.inner.step(f"{self.name}: {text}")

    def note(self, text: str) -> None:
        self.inner.note(f"{self.name}: {text}")

    def progress(self, text: str, done: int, total: int) -> None:
        self.inner.progress(f"{self.name}: {text}", done, total)


class _Silent:
    def step(self, *args: object, **keywords: object) -> None:
        """Show nothing."""

    note = progress = step


silent: Progress = _Silent()
