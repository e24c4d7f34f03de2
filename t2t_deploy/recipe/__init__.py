"""The whole way in one file: a recipe read, followed step by step, and gone on with."""

from __future__ import annotations

from t2t_deploy.recipe._fingerprint import RUNTIME_TOOLS, machine, text_sha256, tools
from t2t_deploy.recipe._load import (
    Job,
    Recipe,
    example_recipe,
    load_recipe,
    recipe_of,
    recipe_text,
    write_example,
)
from t2t_deploy.recipe._run import (
    RecipeRun,
    StepResult,
    StepStatus,
    Walk,
    follow_recipe,
    plan_steps,
    run_recipe,
)
from t2t_deploy.recipe._steps import Evaluate, Step

__all__ = [
    "RUNTIME_TOOLS",
    "Evaluate",
    "Job",
    "Recipe",
    "RecipeRun",
    "Step",
    "StepResult",
    "StepStatus",
    "Walk",
    "example_recipe",
    "follow_recipe",
    "load_recipe",
    "machine",
    "plan_steps",
    "recipe_of",
    "recipe_text",
    "run_recipe",
    "text_sha256",
    "tools",
    "write_example",
]
