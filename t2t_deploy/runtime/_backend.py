"""What each runtime says of itself: what it takes and needs, how a session is opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from t2t_deploy._optional import EXTRAS, WHEELS, is_installed, require
from t2t_deploy.engine import Unavailable, why_no_device
from t2t_deploy.errors import MissingDependencyError
from t2t_deploy.runtime._session import Session, SessionRequest
from t2t_deploy.types import Precision, Target


@dataclass(frozen=True)
class Backend:
    """A runtime by its command-line name.

    module: its optional package. open: opens a session where `run_unavailable` finds nothing;
    raises as `open_session`.
    """

    name: str
    about: str
    takes: str
    """weights, onnx or engine"""
    module: str
    open: Callable[[SessionRequest], Session]
    needs_gpu: bool = False
    """whatever is asked"""
    cuda_graphs: bool = False
    """whether `SessionRequest.cuda_graph` changes anything"""
    compiles: bool = False
    """whether opening it on a CPU takes minutes"""
    made_for: tuple[Target, ...] = ()
    """of which graphs it is the usual runtime"""
    float32_in: tuple[Precision, ...] = (Precision.FP32,)
    """what it can be told to compute float32 graphs in"""

    @property
    def extra(self) -> str:
        """The extra of t2t-deploy that brings it."""
        return EXTRAS[self.module]

    @property
    def tools(self) -> tuple[str, ...]:
        """The distributions whose versions what it computes depends on."""
        return WHEELS.get(self.module, (self.module,))

    @property
    def on_cpu(self) -> bool:
        """Whether it runs ONNX files without a device: they are compared on such a one."""
        return self.takes == "onnx" and not self.needs_gpu

    def run_unavailable(self, device: int | None = None) -> Unavailable | None:
        """The first thing that keeps it from running here; nothing is opened.

        device: ordinal of the CUDA device; None as in `SessionRequest`.
        """
        return next((found for found in self._missing(device) if found is not None), None)

    def import_unavailable(self) -> Unavailable | None:
        """What keeps its package from being imported: it is absent, or broken."""
        absent = self._absent(self.module)
        if absent is not None:
            return absent
        try:
            require(self.module)
        except MissingDependencyError as err:
            cause = err.__cause__
            return Unavailable(
                f"{self.module} is installed but does not import ({type(cause).__name__}: {cause})",
                "reinstall it",
            )
        return None

    def build_unavailable(self) -> Unavailable | None:
        """The first thing that keeps its engines from being built here, of one that has some."""
        return self.import_unavailable()

    def why_not_in(self, precision: Precision) -> str | None:
        """None where it computes in that precision, else why not; asked where it runs."""
        return None

    @property
    def why_no_dynamic_ranges(self) -> str | None:
        """None where 8-bit products may have ranges taken at run time, else what would become."""
        return None

    def _missing(self, device: int | None) -> Iterator[Unavailable | None]:
        """What could be missing, in the order in which a person would mend it; None is there."""
        if self.needs_gpu:
            yield why_no_device(device or 0)
        yield self._absent(self.module)
        if self.needs_gpu:
            yield self.import_unavailable()

    def _absent(self, module: str) -> Unavailable | None:
        if is_installed(module):
            return None
        return Unavailable(f"{module} is not installed", f"pip install 't2t-deploy[{self.extra}]'")
