"""What the steps of a run share: where things are, and what was made so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t2t_deploy.errors import ArtifactError
from t2t_deploy.recipe._recipe import Recipe
from t2t_deploy.recipe._records import OutputFile, Record, tree_sha256
from t2t_deploy.workspace import Artifact, Workspace


@dataclass(slots=True)
class Context:
    """One run under way.

    artifacts: what there is, by its name in the recipe. missing: why another is not there.
    ranges: files of ranges by step. bench: what was measured. last: the record of the step at hand
    as it was done last.
    """

    workspace: Workspace
    recipe: Recipe
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    ranges: dict[str, Path] = field(default_factory=dict)
    bench: dict[str, Any] = field(default_factory=dict)
    last: Record | None = None

    def made(self, path: Path, sha256: str | None = None) -> OutputFile:
        """A file or folder as a record keeps it."""
        found = tree_sha256(path) if sha256 is None else sha256
        bases = {"workspace": self.workspace.root, "recipe": self.recipe.folder}
        for base, root in bases.items():
            if path.absolute().is_relative_to(root.absolute()):
                inside = path.absolute().relative_to(root.absolute())
                return OutputFile(base, inside.as_posix(), found)
        return OutputFile("recipe", str(path.absolute()), found)

    def place(self, made: OutputFile) -> Path:
        """Where a record's file is now."""
        root = self.workspace.root if made.base == "workspace" else self.recipe.folder
        return root / made.path

    def unchanged(self, made: Sequence[OutputFile]) -> None:
        """Raise ArtifactError unless all files are there as they were made."""
        for one in made:
            path = self.place(one)
            try:
                found = tree_sha256(path)
            except OSError:
                raise ArtifactError(f"{one.path} is gone") from None
            if found != one.sha256:
                raise ArtifactError(f"{one.path} was altered")

    def usable(self, names: Sequence[str]) -> dict[str, Artifact]:
        """Those of the artifacts that are there and passed their checks, by name.

        What is left out is told in ``missing``. A verification may have failed since it was made.
        """
        found = {}
        for name in names:
            if name not in self.artifacts:
                continue
            try:
                found[name] = self.workspace.open(self.artifacts[name].path)
            except ArtifactError as err:
                self.missing[name] = str(err)
        return found

    def left_out(self, names: Sequence[str]) -> str | None:
        """The artifacts that are not there, and why, in a line; None where all are."""
        told = [f"{name} ({self.missing[name]})" for name in names if name in self.missing]
        return f"left out {', '.join(told)}" if told else None
