"""What a step's outcome depends on beside its inputs."""

from __future__ import annotations

import pytest

from t2t_deploy._limits import Limits
from t2t_deploy.recipe import _fingerprint


@pytest.mark.parametrize(
    ("limits", "cores"), [(Limits(4), "4"), (Limits(4, 1.5), "4, a quota of 1.5")]
)
def test_measured_times_depend_on_the_quota(
    monkeypatch: pytest.MonkeyPatch, limits: Limits, cores: str
) -> None:
    monkeypatch.setattr(_fingerprint, "read_limits", lambda: limits)
    assert _fingerprint.machine(processor=True)["cores"] == cores
    assert "cores" not in _fingerprint.machine(processor=False)
