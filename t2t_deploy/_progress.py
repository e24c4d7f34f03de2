"""How commands report progress, whoever shows it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives steps, notes and progress."""

    def step(self, text: str) -> None:
        """A new piece of work begins."""

    def note(self, text: str) -> None:
        """Something the user should know."""

    def progress(self, text: str, done: int, total: int) -> None:
        """How far the current piece of work is."""


class _Silent:
    def step(self, *args: object, **keywords: object) -> None:
        """Show nothing."""

    note = progress = step


silent: Progress = _Silent()
