"""Half a processor, for real: the bench's throughput is that of a plain loop."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from t2t_deploy._codec import to_plain
from t2t_deploy.runtime import REFERENCE_BACKEND, SessionRequest
from t2t_deploy.workspace import Workspace

from ..cgroups import control_group
from ..program import finish

LOOP = """
import json, sys, time
from t2t_deploy._codec import from_plain
from t2t_deploy.bench import make_inputs
from t2t_deploy.runtime import SessionRequest, open_session

session = open_session(from_plain(SessionRequest, json.loads(sys.argv[1])))
batch = int(sys.argv[2])
feeds = make_inputs(session.inputs, batch=batch, seed=0)
warm = time.perf_counter() + 1
while time.perf_counter() < warm:
    session.run(feeds)
calls, start = 0, time.perf_counter()
while time.perf_counter() < start + 3:
    session.run(feeds)
    calls += 1
print(calls * batch / (time.perf_counter() - start))
"""
BACKENDS = ("ort-cpu", "openvino", "eager")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")
def test_throughput_is_that_of_a_plain_loop(exported_once: Path) -> None:
    workspace = Workspace(exported_once)
    (artifact,) = workspace.artifacts()
    assert artifact.manifest is not None
    requests = {name: SessionRequest(name, artifact.path, 1) for name in BACKENDS}
    requests[REFERENCE_BACKEND] = SessionRequest(
        REFERENCE_BACKEND,
        workspace.weights(artifact.manifest),
        1,
        config=artifact.manifest.config,
    )
    with control_group(processors=0.5) as within:

        def looped() -> dict[tuple[str, int], float]:
            speeds = {}
            for name, request in requests.items():
                for batch in (1, 8):
                    words = (json.dumps(to_plain(request)), batch)
                    speeds[name, batch] = float(finish(*words, code=LOOP, within=within).out)
            return speeds

        named = (word for name in BACKENDS for word in ("--backend", name))
        before = looped()
        words = ("--workspace", exported_once, "--batch", "1,8", *named, "--json")
        done = finish("bench", *words, within=within, status=0)
        after = looped()
    rows: list[Any] = done.json["results"]
    assert len(rows) == len(before) == 6
    for row in rows:
        key = row["backend"], row["batch"]
        loop = mean((before[key], after[key]))
        assert row["images_per_s"] == pytest.approx(loop, rel=0.15), key
        assert row["throttling"]["throttled_periods"] > 0, key
    assert done.json["environment"]["threads"] == [1]
