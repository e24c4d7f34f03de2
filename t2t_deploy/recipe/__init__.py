"""The whole way in one file: a recipe read, followed step by step, and gone on with."""

from __future__ import annotations

from t2t_deploy.recipe._example import example_recipe, write_example
from t2t_deploy.recipe._load import load_recipe
from t2t_deploy.recipe._recipe import Expected, Named, Recipe, VerifyPlan
from t2t_deploy.recipe._run import RecipeRun, StepResult, StepStatus, plan_steps, run_recipe

__all__ = [
    "Expected",
    "Named",
    "Recipe",
    "RecipeRun",
    "StepResult",
    "StepStatus",
    "VerifyPlan",
    "example_recipe",
    "load_recipe",
    "plan_steps",
    "run_recipe",
    "write_example",
]
