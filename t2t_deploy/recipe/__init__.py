"""The whole way in one file: a recipe read, followed step by step, and gone on with."""

from __future__ import annotations

from t2t_deploy.recipe._load import example_recipe, load_recipe, write_example
from t2t_deploy.recipe._run import (
    RecipeRun,
    StepResult,
    StepStatus,
    follow_recipe,
    plan_steps,
    run_recipe,
)

__all__ = [
    "RecipeRun",
    "StepResult",
    "StepStatus",
    "example_recipe",
    "follow_recipe",
    "load_recipe",
    "plan_steps",
    "run_recipe",
    "write_example",
]
