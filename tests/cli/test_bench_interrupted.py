"""A bench that is stopped gives the rounds that it has, and ends as a stopped command does."""

from __future__ import annotations

import csv
import signal
import sys
from pathlib import Path

import pytest

from ..program import PIPES, Done, start


def stopped(workspace: Path, number: int, *words: object) -> Done:
    """What a bench leaves that is stopped in its third round."""
    many = ("--workspace", workspace, "--backend", "ort-cpu", "--rounds", 1000, *words)
    with start("bench", *many, **PIPES) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("round 3 of 1000"):
                process.send_signal(number)
                break
        out, err = process.communicate(timeout=120)
    return Done(process.returncode, out, err)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_stopped_bench_gives_its_complete_rounds(
    exported_once: Path, tmp_path: Path, number: int, status: int, word: str
) -> None:
    page, table = tmp_path / "r.html", tmp_path / "f.csv"
    done = stopped(exported_once, number, "--json", "--report", page, "--csv", table)
    assert done.status == status
    assert f"error: {word}; nothing half-written was left" in done.err.splitlines()
    values = done.json
    complete = len(values["results"][0]["rounds"])
    # a short round may end before the signal comes
    assert complete >= 2
    said = f"interrupted after {complete} of 1,000 rounds"
    assert values["cut_short"] == said
    assert values["results"][0]["images_per_s"] > 0
    assert f"The bench was cut short: {said}." in page.read_text()
    (row,) = csv.DictReader(table.read_text().splitlines())
    assert row["rounds"] == str(complete)
    assert not list(exported_once.rglob(".t2t-tmp-*"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_the_table_of_a_stopped_bench_says_so(exported_once: Path) -> None:
    done = stopped(exported_once, signal.SIGINT)
    assert (done.status, done.out.count("ort-cpu")) == (130, 1)
    assert "cut short: interrupted after " in done.out
