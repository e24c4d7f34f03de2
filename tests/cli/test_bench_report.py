"""The files that `bench` writes, and what it compares with; the page itself is tests/report."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from t2t_deploy.commands import _bench

from .command import Run, manifest_of

pytestmark = pytest.mark.usefixtures("short_bench")

QUICK = ("bench", "--backend", "ort-cpu", "--rounds", 5, "--threads", 1)


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever measures fails: what is refused is refused before."""

    monkeypatch.setattr(_bench, "run_bench", Mock(side_effect=AssertionError("it was measured")))


@pytest.fixture
def old(run: Run, onnx_file: Path) -> dict[str, Any]:
    """`old.json`, of this machine and one thread; its content."""
    done = run(*QUICK, "--json", status=0)
    Path("old.json").write_text(done.out)
    values: dict[str, Any] = done.json
    return values


def test_page_table_and_json_of_one_bench(run: Run, onnx_file: Path) -> None:
    files = ("--report", "new/report.html", "--csv", "new/figures.csv")
    done = run.json(*QUICK, *files, onnx_file.name, status=0)
    (row,) = done["results"]
    assert done["written"] == ["new/figures.csv", "new/report.html"]
    assert done["comparison"] is None
    assert done["settings"]["rounds"] == 5

    (line,) = csv.DictReader(Path("new/figures.csv").read_text().splitlines())
    assert float(line["p50_ms"]) == row["latency_ms"]["p50"]
    assert line["unstable"] == str(row["unstable"]).lower()

    page = Path("new/report.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and page.rstrip().endswith("</html>")
    manifest = manifest_of(onnx_file)
    assert f"{manifest['verification']['rel_l2']:.2e} of 1e-05 allowed" in page
    assert manifest["sha256"] in page and manifest["weights"]["sha256"] in page
    assert f"{row['latency_ms']['p50']:.2f} ms" in page
    assert f">{done['command']}</code>" in page


def test_the_command_measures_the_same_again(run: Run, onnx_file: Path) -> None:
    first = run.json(*QUICK, "--batch", "1,2", "--csv", "a b.csv", onnx_file.name)
    words = shlex.split(first["command"])
    assert words == [
        *("t2t-deploy", "bench", "--workspace", "artifacts", "--backend", "ort-cpu"),
        *("--batch", "1,2", "--threads", "1", "--rounds", "5", "--csv", "a b.csv"),
        onnx_file.name,
    ]
    again = run.json(*words[1:])
    assert again["command"] == first["command"]
    different = run(
        *(*QUICK, "--baselines", "--cuda-graphs", "both", onnx_file.name, "--json")
    ).json["command"]
    assert " --cuda-graphs both --baselines " in different

    def keys(values: dict[str, Any]) -> list[tuple[Any, ...]]:
        return [(r["backend"], r["artifact"], r["batch"]) for r in values["results"]]

    assert keys(again) == keys(first)


def test_what_is_written_is_said(run: Run, onnx_file: Path) -> None:
    done = run(*QUICK, "--report", "r.html", "--csv", "f.csv", status=0)
    assert done.out.endswith("written: f.csv\nwritten: r.html\n")


def test_a_foreign_file_is_in_the_report_without_lineage(run: Run, onnx_file: Path) -> None:
    Path("theirs.onnx").write_bytes(onnx_file.read_bytes())
    run(*QUICK, "theirs.onnx", "--report", "r.html", status=0)
    page = Path("r.html").read_text()
    assert "theirs.onnx" in page and "No artifact that was measured has a manifest." in page


def test_against_an_older_bench(run: Run, old: dict[str, Any]) -> None:
    found = run.json(*QUICK, "--compare", "old.json", "--report", "r.html", status=0)["comparison"]
    assert (found["old"], found["notes"]) == ("old.json", [])
    assert found["date_utc"] == old["environment"]["date_utc"]
    (case,) = found["cases"]
    assert case["verdict"] in ("faster", "slower", "not distinguishable")
    assert case["ratio"]["low"] <= case["ratio"]["ratio"] <= case["ratio"]["high"]
    assert f'<b class="{case["verdict"].replace(" ", "-")}">' in Path("r.html").read_text()

    shown = run(*QUICK, "--compare", "old.json").out
    assert f"against old.json of {old['environment']['date_utc']}" in shown
    assert "times as fast" in shown


def test_a_slower_bench_is_slower(run: Run, old: dict[str, Any]) -> None:
    """The old one was ten times as fast, by its file."""
    for one in old["results"][0]["rounds"]:
        one["samples_ms"] = [value / 10 for value in one["samples_ms"]]
    Path("old.json").write_text(json.dumps(old))
    (case,) = run.json(*QUICK, "--compare", "old.json")["comparison"]["cases"]
    assert case["verdict"] == "slower"


def test_other_versions_are_noted(run: Run, old: dict[str, Any]) -> None:
    now = old["environment"]["versions"]["onnxruntime"]
    old["environment"]["versions"]["onnxruntime"] = "1.0.0"
    Path("old.json").write_text(json.dumps(old))
    done = run(*QUICK, "--compare", "old.json", "--json")
    assert f"note: not the same as then: onnxruntime: 1.0.0 then, {now} now\n" in done.err


def test_another_machine_is_refused(run: Run, old: dict[str, Any], unmeasured: None) -> None:
    model = old["environment"]["cpu_model"]
    old["environment"]["cpu_model"] = "Other CPU"
    Path("old.json").write_text(json.dumps(old))
    done = run("bench", "--threads", 2, "--compare", "old.json", "--json", status=1)
    message = (
        "old.json was measured on another machine or with other settings: processor Other CPU "
        f"there, {model} here; threads 1 there, 2 here; only the same can be compared: bench both "
        "on one machine with the same threads and device"
    )
    assert done.err == f"error: {message}\n"
    assert done.json == {"error": {"kind": "ComparisonError", "message": message}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read old.json: No such file or directory; name a file that holds what"),
        ("{", "old.json is no result of a bench (Expecting property name"),
        ("[]", "old.json is no result of a bench (it is []; expected an object)"),
        ('{"results": []}', "old.json is no result of a bench (environment is missing)"),
    ],
)
def test_what_cannot_be_compared_with(
    run: Run, onnx_file: Path, unmeasured: None, content: str | None, message: str
) -> None:
    if content is not None:
        Path("old.json").write_text(content)
    done = run("bench", "--compare", "old.json", status=1)
    assert done.err.startswith(f"error: {message}") and done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (("--report", "r.pdf"), 2, "report is 'r.pdf'; expected a path that ends in .html"),
        (("--csv", "f.xlsx"), 2, "csv is 'f.xlsx'; expected a path that ends in .csv"),
        (("--report", "."), 2, "File '.' is a directory."),
        (("--report", "taken/r.html"), 1, "cannot create taken: File exists"),
    ],
)
def test_files_that_cannot_be_written(
    run: Run, onnx_file: Path, unmeasured: None, options: tuple[str, ...], status: int, message: str
) -> None:
    Path("taken").write_text("no folder")
    done = run("bench", *options, status=status)
    assert done.out == ""
    assert done.err.startswith("error: ") and message in done.err
