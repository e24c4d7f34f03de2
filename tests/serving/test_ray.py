"""`predict --ray` on a cluster of this machine: exactly once, and the numbers of the local run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from t2t_deploy._optional import is_installed

from ..small import TINY

if not is_installed("ray"):
    pytest.skip("the extra `ray` is not installed: make test-ray", allow_module_level=True)

import ray_runs as runs

CUT, ODD = "cut.jpg", b"caf\xe9.jpg"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, 60 pictures, two of them broken, and what is predicted locally."""
    folder = tmp_path_factory.mktemp("ray")
    (folder / "home").mkdir()
    (folder / "tiny.toml").write_text(TINY)
    done = runs.run(folder / "home", "export", "--config", "tiny.toml", "-o", "tiny.onnx")
    assert done.status == 0, done.err
    pictures = runs.write_jpegs(folder / "pictures", 57)
    content = (pictures / "000/000000.jpg").read_bytes()
    Path(os.fsdecode(os.fsencode(pictures) + b"/" + ODD)).write_bytes(content)
    (pictures / CUT).write_bytes(content[:300])
    (pictures / "text.jpg").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def local(made: Path) -> Any:
    done = runs.run(made / "home", "predict", "tiny.onnx", "pictures", "--json")
    assert done.status == 3, done.err
    return done.json


def predict(
    made: Path, output: Path, *words: object, status: int | None = None, **options: Any
) -> runs.Done:
    across = ("--ray", "local", "--workers", 2, "--block", 8, "--output", output, "--json")
    done = runs.run(made / "home", "predict", "tiny.onnx", *words, *across, **options)
    assert status is None or done.status == status, done.err
    return done


def assert_same(local: Any, output: Path) -> None:
    """Every picture once, its classes those of the local run."""
    rows = {row["image"]: row for row in runs.rows_in(output)}
    assert len(runs.rows_in(output)) == len(rows) == len(local["results"])
    for wanted in local["results"]:
        row = rows[wanted["image"]]
        assert row["index"] == [ranked["index"] for ranked in wanted["top"]]
        np.testing.assert_allclose(
            row["probability"], [ranked["probability"] for ranked in wanted["top"]], rtol=1e-5
        )
    assert sorted((r["image"], r["error"]) for r in runs.rows_in(output, "failed")) == sorted(
        (row["image"], row["reason"]) for row in local["unreadable"]
    )


def test_as_the_local_run(made: Path, local: Any, tmp_path: Path) -> None:
    """And nothing in the home folder, nobody listening but on the loopback address."""
    listening: set[str] = set()

    def look(driver: psutil.Process) -> None:
        runs.until(lambda: len(runs.blocks_in(tmp_path / "out")) >= 1, driver)
        for process in [driver, *driver.children(recursive=True)]:
            try:
                connections = process.net_connections(kind="inet")
            except psutil.Error:
                continue
            listening.update(c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN)

    before = set(Path("/tmp").glob("t2t-ray-*"))
    done = predict(made, tmp_path / "out", "pictures", status=3, while_running=look)
    assert_same(local, tmp_path / "out")
    found = done.json
    assert (found["images"], found["failed"], found["blocks"], found["workers"]) == (60, 2, 8, 2)
    assert (found["skipped_blocks"], found["superseded_blocks"]) == (0, 0)
    assert len(found["unreadable"]) == 2
    assert done.err.splitlines()[-1] == "error: 2 of 60 pictures have no class"
    assert list((made / "home").iterdir()) == []
    assert listening <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"} and listening
    assert set(Path("/tmp").glob("t2t-ray-*")) == before


def test_a_run_is_taken_up_again(made: Path, local: Any, tmp_path: Path) -> None:
    output = tmp_path / "out"
    predict(made, output, "pictures", status=3)
    blocks = runs.blocks_in(output)
    assert len(blocks) == 8
    stamps = {path: path.stat().st_mtime_ns for path in blocks}
    for path in blocks[2:4]:
        path.unlink()
    (output / "predictions/.t2t-tmp-left.parquet").touch()
    done = predict(made, output, "pictures")
    assert (done.json["skipped_blocks"], done.json["blocks"]) == (6, 8)
    assert "note: 6 of 8 blocks were there already, and were skipped" in done.err
    changed = {path for path in runs.blocks_in(output) if path.stat().st_mtime_ns != stamps[path]}
    assert changed == set(blocks[2:4])
    assert_same(local, output)
    assert not list(output.rglob(".t2t-tmp-*"))

    other = predict(made, output, "pictures", "--top", 2)
    assert (other.status, other.json["error"]["kind"]) == (1, "ArtifactError")
    assert "holds predictions of another run: its top is 5, expected 2" in other.err


def test_pictures_that_came_later(made: Path, tmp_path: Path) -> None:
    """Blocks after them are cut anew; the old ones do not stay beside these."""
    pictures = runs.write_jpegs(tmp_path / "pictures", 20)
    output = tmp_path / "out"
    assert predict(made, output, pictures).json["blocks"] == 3
    (pictures / "000/000010x.jpg").write_bytes((pictures / "000/000001.jpg").read_bytes())
    done = predict(made, output, pictures, status=0)
    assert (done.json["blocks"], done.json["skipped_blocks"]) == (3, 1)
    assert done.json["superseded_blocks"] == 2
    names = [row["image"] for row in runs.rows_in(output)]
    assert len(names) == len(set(names)) == 21


@pytest.mark.slow
def test_one_of_two_workers_is_killed(made: Path, tmp_path: Path) -> None:
    pictures = runs.write_jpegs(tmp_path / "pictures", 1200, seed=1)
    wanted = runs.run(made / "home", "predict", "tiny.onnx", pictures, "--json").json
    output = tmp_path / "out"
    kill = runs.kill_a_worker(output, after=10)
    done = predict(made, output, pictures, status=0, while_running=kill)
    assert done.json["images"] == 1200
    assert_same(wanted, output)


def test_a_killed_driver(made: Path, local: Any, tmp_path: Path) -> None:
    """Its cluster ends with it, and what it finished is used."""
    output = tmp_path / "out"
    below: list[psutil.Process] = []

    def kill(driver: psutil.Process) -> None:
        runs.until(lambda: len(runs.blocks_in(output)) >= 1, driver)
        # its agents look for their parent less often, and hold nothing
        below.extend(p for p in driver.children(recursive=True) if not p.name().endswith("Agent"))
        driver.kill()

    predict(made, output, "pictures", status=-9, while_running=kill)
    _, alive = psutil.wait_procs(below, timeout=60)
    assert not alive
    predict(made, output, "pictures", status=3)
    assert_same(local, output)


def test_uris(made: Path, local: Any, tmp_path: Path) -> None:
    """A filesystem of pyarrow's; names and errors tell the URI."""
    done = predict(made, tmp_path / "out", (made / "pictures").as_uri())
    assert (done.status, done.json["error"]["kind"]) == (1, "ImageError")
    assert "holds a name that is no UTF-8 (b'" in done.err
    shutil.copytree(
        made / "pictures",
        tmp_path / "pictures",
        ignore=lambda _, found: [name for name in found if os.fsencode(name) == ODD],
    )
    predict(made, tmp_path / "out", (tmp_path / "pictures").as_uri(), status=3)
    prefix = f"file://{tmp_path}/"
    rows = {row["image"]: row["index"] for row in runs.rows_in(tmp_path / "out")}
    assert rows == {
        prefix + row["image"]: [ranked["index"] for ranked in row["top"]]
        for row in local["results"]
        if "caf" not in row["image"]
    }
    failed = {row["image"] for row in runs.rows_in(tmp_path / "out", "failed")}
    assert failed == {f"{prefix}pictures/{name}" for name in (CUT, "text.jpg")}


@pytest.mark.parametrize("labelled", [True, False])
def test_evaluate_as_the_local_run(made: Path, tmp_path: Path, labelled: bool) -> None:
    """Two artifacts and their reference; 300 pictures, so that there are two blocks."""
    pictures = runs.write_jpegs(tmp_path / "flat", 300, seed=2)
    if labelled:
        for index, path in enumerate(sorted(pictures.rglob("*.jpg"))):
            target = tmp_path / "classes" / str(index % 10) / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
        pictures = tmp_path / "classes"
    else:
        pictures = pictures / "000"
    next(pictures.rglob("*.jpg")).write_bytes(b"no picture")
    words = ("evaluate", "--images", pictures, "--workspace", made / "two", "--json")
    for precision in ("fp32", "fp16"):
        export = ("export", "--config", "tiny.toml", "--precision", precision)
        assert runs.run(made / "home", *export, "--workspace", made / "two").status == 0
    local, across = (
        runs.run(made / "home", *words, *more) for more in ((), ("--ray", "local", "--workers", 2))
    )
    assert (local.status, across.status) == (3, 3), local.err + across.err
    assert across.json["images"] == local.json["images"]
    for one, other in zip(local.json["results"], across.json["results"], strict=True):
        for error in ("rel_l2_mean", "rel_l2_max"):  # threads change the order of sums
            assert one.pop(error) == pytest.approx(other.pop(error), rel=0.1)
        assert one == other
        assert one["images"] == 299 and (one["top1"] is not None) == labelled
    assert list((made / "home").iterdir()) == []


def test_nothing_to_do_starts_no_cluster(made: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = predict(made, tmp_path / "out", tmp_path / "empty", status=1)
    assert done.json["error"]["kind"] == "ImageError"
    assert not (tmp_path / "out").exists()


LOST = """
import os, sys
from t2t_deploy.errors import BackendError, ImageError
from t2t_deploy.serving import Listing, map_blocks, ray_cluster


class Make:
    def __init__(self, what): self.what = what
    def __call__(self):
        if self.what == "refuse": raise BackendError("no runtime in this worker")
        def work(images):
            if "0.jpg" in images[0]:
                if self.what == "die": os._exit(1)
                if self.what == "bug": raise ZeroDivisionError("a bug")
            return len(images)
        return work

if __name__ == "__main__":
    with ray_cluster("local", cpus=1, shared_bytes=0) as cluster:
        listing = Listing((sys.argv[2],), 4, "x")
        try:
            for found in map_blocks(cluster, listing, Make(sys.argv[1]), workers=1):
                print(found, flush=True)
        except BackendError as err:
            print("BackendError:", err)
"""


@pytest.mark.parametrize(
    ("what", "status", "message"),
    [
        ("die", 0, "BackendError: a worker was lost 3 times over the same block"),
        ("refuse", 0, "BackendError: no runtime in this worker"),
        ("bug", 1, "ZeroDivisionError: a bug"),
    ],
)
def test_what_does_not_end_well(
    made: Path, tmp_path: Path, what: str, status: int, message: str
) -> None:
    """A picture that always ends its worker does not keep the run from ending."""
    script = tmp_path / "lost.py"
    script.write_text(LOST)
    done = subprocess.run(
        [sys.executable, script, what, made / "pictures"],
        env=runs.environment(made / "home", tmp_path),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == status, done.stderr
    assert message in done.stdout + done.stderr
