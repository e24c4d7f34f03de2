from __future__ import annotations

from collections.abc import Mapping

import pytest

from t2t_deploy.runtime import SessionRequest

from ..small import tiny_exports


@pytest.fixture(scope="package")
def requests(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, SessionRequest]:
    """How to open the tiny model in each runtime, with threads of its own choice."""
    workspace = tiny_exports(tmp_path_factory.mktemp("sessions"), {})
    (made,) = workspace.artifacts("onnx")
    manifest = made.require_manifest()
    config = dict(manifest.config)
    return {
        **{
            n: SessionRequest(n, workspace.weights(manifest), config=config)
            for n in ("eager", "compile")
        },
        **{name: SessionRequest(name, made.path) for name in ("ort-cpu", "openvino")},
    }
