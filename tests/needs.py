"""What some tests need: they are skipped, with the reason, where it is absent."""

from __future__ import annotations

import pytest

from t2t_deploy._optional import is_installed


def _needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not is_installed(package), reason=f"{package} is not installed")


needs_openvino = _needs("openvino")
needs_tensorrt_rtx = _needs("tensorrt_rtx")
