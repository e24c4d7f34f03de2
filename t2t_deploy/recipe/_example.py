"""The commented recipe that one begins with."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from t2t_deploy._files import write_text
from t2t_deploy.errors import RecipeError, shown_path


def example_recipe() -> str:
    """A recipe that runs as it is; what needs files of one's own stands in it as a comment."""
    return (importlib.resources.files(__package__) / "example.toml").read_text(encoding="utf-8")


def write_example(file: Path) -> None:
    """Write it to a file. Raises RecipeError where something is there, ArtifactError."""
    if file.exists():
        raise RecipeError(
            f"{shown_path(file)} is there already and may be a recipe of yours; name another file, "
            "or remove it"
        )
    write_text(file, example_recipe())
