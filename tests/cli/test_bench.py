"""What `bench` measures, leaves out and refuses; the measuring itself is tests/bench."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from t2t_deploy._optional import is_installed
from t2t_deploy.engine import device_capability, why_no_device
from t2t_deploy.runtime import BACKENDS

from ..needs import needs_openvino
from .command import Change, Run, manifest_of

pytestmark = pytest.mark.usefixtures("short_bench")
GPU_BACKENDS = [name for name, backend in BACKENDS.items() if backend.needs_gpu]


needs_no_device = pytest.mark.skipif(
    device_capability() is not None, reason="a CUDA device is here: these backends may run"
)


def test_one_backend_by_name(run: Run, onnx_file: Path) -> None:
    done = run(
        "bench", "--backend", "ort-cpu", "--rounds", 5, "--threads", 1, "--batch", "1,3", status=0
    )
    rows = [line for line in done.out.splitlines() if line.startswith("│")]
    assert len(rows) == 2 and all("ort-cpu" in row and onnx_file.name in row for row in rows)
    assert "not run" not in done.out


def test_streams_are_rows_of_their_own(run: Run, onnx_file: Path) -> None:
    words = ("bench", "--backend", "ort-cpu", "--rounds", 5, "--threads", 2, "--streams", "1,2")
    done = run.json(*words, status=0)
    assert [(row["status"], row["streams"]) for row in done["results"]] == [("ok", 1), ("ok", 2)]
    assert "--streams 1,2" in done["command"]
    old = onnx_file.parent / "old.json"
    old.write_text(run(*words, "--json").out)
    shown = run(*words[:-1], 2, "--compare", old, status=0).out
    tables = shown.split("against ")
    assert all("┃ streams ┃" in table for table in tables) and len(tables) == 2
    assert tables[1].count("not among the new") == 1


@pytest.mark.parametrize(("words", "turns"), [((), 0), (("-v",), 5), (("-q",), None)])
def test_without_a_terminal_there_is_a_line_for_each_round(
    run: Run, onnx_file: Path, words: tuple[str, ...], turns: int | None
) -> None:
    """And one for each turn where more is asked for."""
    done = run("bench", "--backend", "ort-cpu", "--rounds", 5, *words, status=0)
    lines = done.err.splitlines()
    if turns is None:
        assert lines == []
        return
    rounds = [line for line in lines if line.startswith("round ") and line.endswith(" ...")]
    assert rounds == [f"round {number} of 5 ..." for number in range(1, 6)]
    assert lines.index("loading and warming up 1 case ...") < lines.index(rounds[0])
    assert sum(line.startswith("round ") and ": " in line for line in lines) == turns


@pytest.mark.parametrize("backend", [*GPU_BACKENDS, "eager"])
@needs_no_device
def test_a_named_backend_without_a_device(run: Run, workspace: Path, backend: str) -> None:
    reason = why_no_device()
    assert reason is not None and reason.reason.startswith(("no NVIDIA driver (", "the NVIDIA dr"))
    device = ("--device", "cuda:0") if backend == "eager" else ()
    message = run.fails("BackendError", "bench", "--backend", backend, *device)
    assert message == f"backend {backend} cannot run here: {reason}"


@needs_no_device
def test_what_needs_a_device_is_told_with_its_reason(run: Run, workspace: Path) -> None:
    done = run.json("bench", "--rounds", 5, "--threads", 1, status=0)
    rows = {row["backend"]: row for row in done["results"]}
    for backend in GPU_BACKENDS:
        assert rows[backend]["status"] == "not_run"
        assert rows[backend]["reason"] == str(why_no_device())
        assert rows[backend]["latency_ms"] is None
    assert rows["eager"]["status"] == rows["ort-cpu"]["status"] == "ok"
    assert rows["eager"]["parts_ms"] is None

    shown = run("bench", "--rounds", 5, "--threads", 1).out
    (line,) = (line for line in shown.split("not run: ") if str(why_no_device())[:20] in line)
    assert all(name in line for name in GPU_BACKENDS)


def test_eager_by_name_needs_no_device(run: Run, workspace: Path) -> None:
    done = run.json("bench", "--backend", "eager", "--rounds", 5, "--threads", 1, status=0)
    assert [(row["backend"], row["status"]) for row in done["results"]] == [("eager", "ok")]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        *(
            ("--device", device, f"'{device}'; expected 'cuda:0', 'cuda:1' and so on")
            for device in ("cpu", "cuda", "cuda:x", "0")
        ),
        ("--backend", "cuda", "error: Invalid value for '--backend': 'cuda' is not one of 'eager'"),
        ("--streams", "0", "'0'; expected a whole number from 1, or a list of such"),
        ("--streams", "1,999", "error: streams is 999, threads "),
        ("--rounds", "4", "Invalid value for '--rounds': 4 is not in the range x>=5."),
    ],
)
def test_wrong_usage(run: Run, workspace: Path, option: str, value: str, message: str) -> None:
    assert message in run("bench", option, value, status=2).err


def test_a_fixed_batch_is_not_run_at_another(run: Run, tiny_toml: Path) -> None:
    name = Path(run.json("export", "--config", tiny_toml, "--batch", 4)["artifact"]["path"]).name
    done = run.json("bench", "--backend", "ort-cpu", "--rounds", 5, "--batch", "1,4", status=0)
    four, one = done["results"]
    assert (four["batch"], four["status"], four["artifact"]) == (4, "ok", name)
    assert (one["batch"], one["status"]) == (1, "not_run")
    reason = "its batch is fixed at 4: measure that, or export with batch dynamic"
    assert one["reason"] == reason

    for words in (("--backend", "ort-cpu", name), ("--batch", 8)):
        message = run.fails("MisfitError", "bench", *words)
        assert message == f"nothing here can be measured: {reason}"


def test_a_foreign_file_of_another_batch_is_an_error(run: Run, tiny_toml: Path) -> None:
    """Its batch is known once it is loaded; rows and JSON are there all the same."""
    made = Path(run.json("export", "--config", tiny_toml, "--batch", 4)["artifact"]["path"])
    shutil.copy(made, "theirs.onnx")
    done = run("bench", "theirs.onnx", "--batch", 8, "--rounds", 5, "--json", status=1)
    assert {row["status"] for row in done.json["results"]} == {"not_run"}
    assert "error: no artifact was measured: input 'image' has its batch fixed to 4" in done.err


def test_a_comparison_of_nothing_is_an_error(run: Run, tiny_toml: Path, onnx_file: Path) -> None:
    ask = ("bench", "--backend", "ort-cpu", "--rounds", 5, "--threads", 1, "--json")
    Path("old.json").write_text(run(*ask, status=0).out)
    assert run(*ask, "--compare", "old.json", status=0).json["comparison"]["cases"]
    other = tiny_toml.with_name("more.toml")
    other.write_text(tiny_toml.read_text())
    made = run.json("export", "--config", other, status=0)["artifact"]["path"]
    done = run(*ask, made, "--compare", "old.json", status=1)
    assert done.json["results"][0]["status"] == "ok"
    assert "error: nothing was compared with old.json; name a bench of the same" in done.err


def test_a_file_that_does_not_load_fails(run: Run) -> None:
    Path("junk.onnx").write_bytes(bytes(range(256)) * 10)
    done = run("bench", "junk.onnx", "--rounds", 5, "--json", status=1)
    refused = ["ort-cpu", *(["openvino"] if is_installed("openvino") else [])]
    failed = [row for row in done.json["results"] if row["status"] == "failed"]
    assert [row["backend"] for row in failed] == refused
    for row in failed:
        assert "junk.onnx is no readable ONNX file" in row["reason"]
        assert f"note: {row['backend']} junk.onnx failed: {row['reason']}" in done.err


def test_a_foreign_file_is_measured_without_a_reference(run: Run, onnx_file: Path) -> None:
    shutil.copy(onnx_file, "theirs.onnx")
    done = run.json("bench", "theirs.onnx", "--rounds", 5, "--threads", 1, status=0)
    rows = [row for row in done["results"] if row["status"] == "ok"]
    assert len(rows) == 1 + is_installed("openvino")
    for row in rows:
        assert (row["artifact"], row["precision"]) == ("theirs.onnx", "as stored")
        assert row["speedup_vs_eager"] is None


def test_a_failed_artifact_is_left_out(run: Run, onnx_file: Path, change_manifest: Change) -> None:
    verification = manifest_of(onnx_file)["verification"]
    change_manifest(
        onnx_file, verification=verification | {"status": "failed", "reason": "too far off"}
    )
    assert f"note: left out {onnx_file.name}: too far off" in run("bench", status=1).err
    done = run("bench", "--force", "--backend", "ort-cpu", "--rounds", 5, status=0)
    assert onnx_file.name in done.out


@needs_openvino
def test_openvino_by_name(run: Run, onnx_file: Path) -> None:
    done = run.json("bench", "--backend", "openvino", "--rounds", 5, "--threads", 1, status=0)
    (row,) = done["results"]
    assert (row["backend"], row["artifact"], row["precision"], row["status"]) == (
        *("openvino", onnx_file.name, "fp32", "ok"),
    )
    assert len(list(Path("artifacts/cache/openvino").glob("*.blob"))) == 1
