"""The description of a runtime: what it takes and needs, how it opens a session."""

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

    module: its optional package. open: opens a session if `run_unavailable` is None;
    raises as `open_session`.
    """

    name: str
    about: str
    takes: str
    """weights, onnx or engine"""
    module: str
    open: Callable[[SessionRequest], Session]
    needs_gpu: bool = False
    """for every request"""
    cuda_graphs: bool = False
    """whether `SessionRequest.cuda_graph` changes anything"""
    compiles: bool = False
    """whether opening it on a CPU takes minutes"""
    made_for: tuple[Target, ...] = ()
    """the targets whose graphs it usually runs"""
    float32_in: tuple[Precision, ...] = (Precision.FP32,)
    """precisions it can compute float32 graphs in"""

    @property
    def extra(self) -> str:
        """The extra of t2t-deploy that installs it."""
        return EXTRAS[self.module]

    @property
    def tools(self) -> tuple[str, ...]:
        """The distributions whose versions its results depend on."""
        return WHEELS.get(self.module, (self.module,))

    @property
    def on_cpu(self) -> bool:
        """Whether it runs ONNX files without a device, so that they can be compared on it."""
        return self.takes == "onnx" and not self.needs_gpu

    def run_unavailable(self, device: int | None = None) -> Unavailable | None:
        """The first reason why it cannot run here; opens nothing.

        device: ordinal of the CUDA device; None as in `SessionRequest`.
        """
        return next(filter(None, self._missing(device)), None)

    def import_unavailable(self) -> Unavailable | None:
        """Why its package cannot be imported: it is absent or broken."""
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
        """The first reason why its engines cannot be built here, if it has any."""
        return self.import_unavailable()

    def why_not_in(self, precision: Precision) -> str | None:
        """Why it cannot compute in a precision, None if it can; only for one that runs here."""
        return None

    @property
    def why_no_dynamic_ranges(self) -> str | None:
        """Why 8-bit products may not take their ranges at run time; None if they may."""
        return None

    def _missing(self, device: int | None) -> Iterator[Unavailable | None]:
        """Each requirement, in the order to fix them: why it is missing, or None."""
        if self.needs_gpu:
            yield why_no_device(device or 0)
        yield self._absent(self.module)
        if self.needs_gpu:
            yield self.import_unavailable()

    def _absent(self, module: str) -> Unavailable | None:
        if is_installed(module):
            return None
        return Unavailable(f"{module} is not installed", f"pip install 't2t-deploy[{self.extra}]'")
