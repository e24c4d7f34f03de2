"""The peers' bench: its table, and that what cannot be made or run is a row with the reason."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import bench_peers
import peers
import pytest
from bench_peers import OURS, Row, table, with_speedup_vs_peer
from click.testing import CliRunner, Result
from peers import EAGER, PEERS, RECIPES, Work

from t2t_deploy._child import ChildError
from t2t_deploy._optional import is_installed
from t2t_deploy.bench import BenchStatus, CaseResult, Round, Speedup

from .small import TINY, tiny_exports

FASTEST, SLOWER, WRONG = "fastest", "slower", "wrong"


def row(name: str, p50_ms: float | None, **changes: Any) -> Row:
    measured = Row(name, 8, 2, {"torch": "2.13.0"}, BenchStatus.OK, p50_ms=p50_ms)
    return dataclasses.replace(measured, **{"error_mean": 0.01, "error_worst": 0.02} | changes)


def result(name: str, ms: float) -> CaseResult:
    rounds = tuple(Round(number, 1, (ms,) * 3) for number in range(1, 6))
    return CaseResult("ort-cpu", name, "int8", 8, BenchStatus.OK, rounds=rounds)


def cells(text: str) -> dict[str, list[str]]:
    lines = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")]
    return {name.strip(): [cell.strip() for cell in others] for name, *others in lines}


def test_table_has_a_row_for_each_outcome() -> None:
    speedup = Speedup(2.0, 1.9, 2.1)
    failed = {"error_mean": None, "error_worst": None}
    rows = [
        row(EAGER, 10.0, images_per_s=800.0),
        row("peer", 5.0, vs_eager=speedup, unstable=True),
        row(WRONG, 4.0, error_mean=None, error_worst=None, not_finite=3),
        row("dead", None, status=BenchStatus.FAILED, reason="a | b", **failed),
        row("absent", None, status=BenchStatus.NOT_RUN, reason="not installed", **failed),
        row(f"{OURS}a.onnx", 2.5, vs_peer=speedup),
    ]
    text = table(rows)
    assert text.startswith("batch 8, threads 2:\n")
    found = cells(text)
    assert found[EAGER] == ["10.00", "-", "800.0", "0.01", "0.02", "-", ""]
    assert found["peer"] == ["5.00", "2.00 [1.90, 2.10]", "-", "0.01", "0.02", "-", "unstable"]
    assert found[WRONG][3:] == ["nan", "nan", "-", "logits of 3 pictures are not finite"]
    assert found["dead"] == [*("-",) * 6, "failed: a / b"]
    assert found["absent"][-1] == "not run: not installed"
    assert found[f"{OURS}a.onnx"][5] == "2.00 [1.90, 2.10]"


def test_ours_are_compared_with_the_fastest_peer_whose_logits_are_finite() -> None:
    ours, times = f"{OURS}a.onnx", {EAGER: 8.0, SLOWER: 6.0, FASTEST: 4.0, WRONG: 1.0}
    rows = [row(name, ms) for name, ms in (times | {ours: 2.0}).items()]
    rows[3] = dataclasses.replace(rows[3], error_mean=None, error_worst=None, not_finite=1)
    results = [result(name, ms) for name, ms in (times | {ours: 2.0}).items()]
    found = {one.name: one.vs_peer for one in with_speedup_vs_peer(rows, results)}
    assert found.pop(ours) == Speedup(2.0, 2.0, 2.0)
    assert set(found.values()) == {None}


def test_peers_have_names_of_their_own_and_recipes_that_are_there() -> None:
    assert len({peer.name for peer in PEERS}) == len(PEERS)
    assert PEERS[0].name == EAGER
    in_browsers_alone = "plain-torchscript"
    assert {peer.recipe for peer in PEERS} == {None, *RECIPES} - {in_browsers_alone}


def test_a_peer_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    work = Work(tmp_path / "none.safetensors", {}, tmp_path)
    told: list[str] = []
    with pytest.raises(ChildError, match=r"^not made: \w+: "):
        peers.made("plain", work, told.append)
    assert told == ["making plain, batch 1"]
    assert not list(tmp_path.glob("**/made.json"))


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(bench_peers.main, [str(one) for one in arguments])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "nothing says which model to export; give a variant, such as 14"),
        (("--rounds", "3"), "3 is not in the range x>=5"),
        (("--batch", "0"), "0 is not in the range x>=1"),
        (("no.onnx",), "'no.onnx' does not exist"),
    ],
)
def test_refusals(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    refused = invoke(*arguments, "--folder", tmp_path)
    assert refused.exit_code in (1, 2)
    assert says in refused.output


def test_a_file_of_other_weights_is_refused(tmp_path: Path) -> None:
    workspace = tiny_exports(tmp_path, {})
    (artifact,) = workspace.artifacts()
    other = tmp_path / "other.toml"
    other.write_text(TINY.replace("num_classes = 10", "num_classes = 11"))
    options = ("--config", other, "--peers", "none", "--folder", tmp_path / "peers")
    refused = invoke(artifact.path, *options)
    assert refused.exit_code == 1
    assert "is of other weights" in refused.output


@pytest.mark.slow
def test_peers_and_ours_side_by_side(tmp_path: Path) -> None:
    workspace = tiny_exports(tmp_path, {})
    (artifact,) = workspace.artifacts()
    words = ("plain export, ONNX Runtime", "quantize_", "nncf")
    options: list[str | Path] = ["--config", tmp_path / "tiny.toml", "--folder", tmp_path / "peers"]
    options += [text for word in words for text in ("--peers", word)]
    options += ["--rounds", "5", "--round-seconds", "0.01", "--json", tmp_path / "found.json"]
    done = invoke(artifact.path, *options)
    assert done.exit_code == 0, done.output
    (run,) = json.loads((tmp_path / "found.json").read_text())["runs"]
    rows = {one["name"]: one for one in run["rows"]}
    assert len(rows) == 1 + 1 + 5 + 4 + 1
    plain = rows["plain export, ONNX Runtime"]
    assert plain["status"] == "ok" and plain["error_worst"] < 1e-5 and plain["vs_eager"]
    assert list(plain["versions"]) == ["onnxruntime"]
    dynamic = rows["ONNX Runtime's quantize_dynamic"]
    assert 1e-4 < dynamic["error_mean"] <= dynamic["error_worst"] < 0.5
    ours = rows[f"{OURS}{artifact.path.name}"]
    assert ours["error_worst"] < 1e-5 and ours["vs_peer"]
    if not is_installed("nncf"):
        absent = rows["nncf int8, defaults, f32"]
        assert (absent["status"], absent["reason"]) == ("not_run", "nncf not installed")
    again = invoke(artifact.path, *options)
    assert again.exit_code == 0, again.output
    assert "making" not in again.output
