"""What a step of a recipe is: what it depends on, how it is done, how reused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from t2t_deploy._progress import Progress
from t2t_deploy.recipe._context import Context
from t2t_deploy.recipe._parts import artifact_part
from t2t_deploy.recipe._records import OutputFile, Parts, Record
from t2t_deploy.workspace import Artifact

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A step that was done.

    result: what its command prints with --json. fell_short: the check that failed; the step then
    counts as failed. exit_status: of that. note: what else should be known.
    """

    result: Values
    made: tuple[OutputFile, ...] = ()
    fell_short: str | None = None
    exit_status: int = 3
    note: str | None = None


class Step(Protocol):
    """A step of a recipe. needs: the names of the artifacts, or steps, it cannot do without.

    lacks_tools: whether a runtime or builder that cannot run here leaves it not run.
    """

    @property
    def label(self) -> str:
        """The command and the name, as people read it."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Labels of the steps without which there is nothing to do."""

    @property
    def lacks_tools(self) -> bool:
        """Whether what cannot run here is not run instead of failed."""

    def parts(self, context: Context) -> Parts:
        """All that the outcome depends on. Raises DeployError for what cannot be read."""

    def run(self, context: Context, progress: Progress) -> Outcome:
        """Do it. Raises DeployError."""

    def reuse(self, context: Context, record: Record) -> Outcome:
        """Take what was made before. Raises ArtifactError where it is not there as it was."""


@dataclass(frozen=True, slots=True)
class NamedStep:
    """What steps about one artifact, or one file of ranges, share.

    name: what it has in the recipe. source: the artifact that the step starts from. source_step:
    the label of the step that makes that.
    """

    name: str
    request: Any
    source: str | None = None
    source_step: str | None = None

    command: ClassVar[str] = ""
    lacks_tools: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """The command and the name."""
        return f"{self.command} {self.name}"

    @property
    def needs(self) -> tuple[str, ...]:
        """The step that makes what this one starts from."""
        return () if self.source_step is None else (self.source_step,)

    def given(self, context: Context) -> Artifact:
        """What it starts from."""
        assert self.source is not None
        return context.artifacts[self.source]

    def source_part(self, context: Context) -> dict[str, str]:
        """What it starts from, as a part."""
        return artifact_part(str(self.source), self.given(context))
