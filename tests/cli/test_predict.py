"""Classes of pictures, from the command line."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from t2t_deploy import load_session
from t2t_deploy.images import preprocess, read_image

from ..noise import write_noise
from ..program import environment, finish
from .command import Change, Run, Temporaries
from .graphs import scaled

CLASSES = 10
Stdin = Callable[[bytes], None]
NO_LABELS = "note: there are no labels for these classes: --labels FILE, one a line, gives them"


@pytest.fixture
def pictures(empty_folder: Path) -> Path:
    """Seven pictures of noise, two of them in a folder below."""
    names = (f"{'more/' if index > 4 else ''}{index}.jpg" for index in range(7))
    write_noise(*(Path("pictures", name) for name in names), size=(36, 40))
    return Path("pictures")


@pytest.fixture
def labels(empty_folder: Path) -> Path:
    Path("labels.txt").write_text("".join(f"number [{i}], é\n" for i in range(CLASSES)))
    return Path("labels.txt")


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Stdin:
    def give(content: bytes) -> None:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))

    return give


def wanted(onnx_file: Path, path: Path) -> tuple[list[int], np.ndarray]:
    """All classes of a picture, best first, and the softmax, by other means."""
    session = onnxruntime.InferenceSession(onnx_file)
    (logits,) = session.run(None, {"image": preprocess(read_image(path), 32)[None]})
    values = logits[0].astype(np.float64)
    shares = np.exp(values) / np.exp(values).sum()
    return [int(index) for index in np.argsort(-values, kind="stable")], shares


def classes_of(results: list[Any]) -> list[list[int]]:
    """The classes of each picture, best first."""
    return [[ranked["index"] for ranked in row["top"]] for row in results]


def test_one_picture_is_one_picture(run: Run, onnx_file: Path, pictures: Path) -> None:
    assert "predicting 1 picture with " in run("predict", onnx_file, pictures / "0.jpg").err
    assert "predicting 7 pictures with " in run("predict", onnx_file, pictures).err


def test_json(run: Run, onnx_file: Path, pictures: Path) -> None:
    done = run("predict", onnx_file, pictures, "--json", status=0)
    found = done.json
    assert [row["image"] for row in found["results"]] == [
        *(f"pictures/{index}.jpg" for index in range(5)),
        *("pictures/more/5.jpg", "pictures/more/6.jpg"),
    ]
    for row in found["results"]:
        order, shares = wanted(onnx_file, Path(row["image"]))
        assert [ranked["index"] for ranked in row["top"]] == order[:5]
        for ranked in row["top"]:
            assert set(ranked) == {"index", "label", "probability"}
            assert ranked["probability"] == pytest.approx(shares[ranked["index"]], rel=1e-5)
            assert ranked["label"] is None
    assert found["artifact"]["path"] == str(onnx_file)
    assert (found["backend"], found["batch"], found["labels"]) == ("ort-cpu", 8, None)
    assert (found["images"], found["unreadable"], found["not_finite"]) == (7, [], [])
    assert done.err.splitlines().count(NO_LABELS) == 1
    assert f"predicting 7 pictures with {onnx_file.name}, ort-cpu" in done.err
    assert "has seeded random weights: its classes mean nothing" in done.err


def test_table_with_labels(run: Run, onnx_file: Path, pictures: Path, labels: Path) -> None:
    done = run("predict", onnx_file, pictures / "3.jpg", "--labels", labels, "--top", 2, status=0)
    order, shares = wanted(onnx_file, pictures / "3.jpg")
    lines = [line.split("│")[1:-1] for line in done.out.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in line] for line in lines] == [
        ["pictures/3.jpg", str(order[0]), f"number [{order[0]}], é", f"{shares[order[0]]:.2%}"],
        ["", str(order[1]), f"number [{order[1]}], é", f"{shares[order[1]]:.2%}"],
    ]
    assert NO_LABELS not in done.err


def test_csv(run: Run, onnx_file: Path, pictures: Path, labels: Path) -> None:
    (pictures / "2.jpg").write_bytes(b"no picture")
    words = ("--labels", labels, "--top", 2, "--csv", "out/table.csv", "--json")
    done = run("predict", onnx_file, pictures, *words, status=3)
    assert done.json["csv"] == "out/table.csv"
    with open("out/table.csv", encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == [
        *("image", "error"),
        *("class_1", "label_1", "probability_1", "class_2", "label_2", "probability_2"),
    ]
    assert len(rows) == 7
    assert rows[2][0] == "pictures/2.jpg" and rows[2][2:] == [""] * 6
    assert rows[2][1] == done.json["unreadable"][0]["reason"]
    assert [row for row in rows if not row[1]] == [
        [
            result["image"],
            "",
            *(str(r[key]) for r in result["top"] for key in ("index", "label", "probability")),
        ]
        for result in done.json["results"]
    ]


@pytest.mark.parametrize("batch", [3, 7, 16])
def test_batches(run: Run, tiny_toml: Path, onnx_file: Path, pictures: Path, batch: int) -> None:
    """The same classes, whatever the batch and however the pictures divide by it."""
    free = run.json("predict", onnx_file, pictures, "--batch", 4)
    assert free["batch"] == 4
    assert run("export", "--config", tiny_toml, "--batch", batch, "-o", "fixed.onnx").status == 0
    fixed = run.json("predict", "fixed.onnx", pictures)
    assert fixed["batch"] == batch
    assert classes_of(free["results"]) == classes_of(fixed["results"])
    for one, other in zip(free["results"], fixed["results"], strict=True):
        assert one["image"] == other["image"]
        np.testing.assert_allclose(
            [r["probability"] for r in one["top"]],
            [r["probability"] for r in other["top"]],
            rtol=1e-5,
        )


@pytest.mark.parametrize("backend", ["openvino", "eager"])
def test_another_runtime(run: Run, onnx_file: Path, pictures: Path, backend: str) -> None:
    first = run.json("predict", onnx_file, pictures)["results"]
    done = run.json("predict", onnx_file, pictures, "--backend", backend, "--threads", 1, status=0)
    assert done["backend"] == backend
    assert classes_of(done["results"]) == classes_of(first)


@pytest.mark.parametrize(
    ("backend", "status", "message"),
    [
        ("ort-cuda", 1, "backend ort-cuda cannot run here: "),
        ("tensorrt-rtx", 2, "--backend tensorrt-rtx takes a file of kind engine and "),
        ("tpu", 2, "'--backend': 'tpu' is not one of 'eager'"),
    ],
)
def test_a_runtime_that_cannot_run(
    run: Run, onnx_file: Path, pictures: Path, backend: str, status: int, message: str
) -> None:
    done = run("predict", onnx_file, pictures, "--backend", backend)
    if backend == "ort-cuda" and done.status == 0:
        pytest.skip("ort-cuda runs here")
    assert (done.status, done.out) == (status, "")
    assert message in done.err.splitlines()[-1]


def test_what_openvino_compiled_is_kept_in_the_workspace(
    run: Run, workspace: Path, onnx_file: Path, pictures: Path
) -> None:
    pytest.importorskip("openvino")
    cache = workspace / "cache" / "openvino"
    words = ("predict", onnx_file, pictures, "--backend", "openvino")
    first = run.json(*words, status=0)["results"]
    (blob,) = cache.glob("*.blob")  # for the seven pictures, and for no other size
    assert run.json(*words, status=0)["results"] == first
    assert list(cache.glob("*.blob")) == [blob]
    feeds = {"image": np.zeros((1, 3, 32, 32), np.float32)}
    logits = []
    for damaged in (False, False, True):
        if damaged:
            for blob in cache.glob("*.blob"):
                blob.chmod(0o600)
                blob.write_bytes(blob.read_bytes()[: blob.stat().st_size // 2])
        with load_session(onnx_file, backend="openvino", workspace=workspace) as session:
            logits.append(session.run(feeds)["logits"].tobytes())
        assert len(list(cache.glob("*.blob"))) == 2
    assert len(set(logits)) == 1


def test_bf16_is_not_computed_otherwise(run: Run, tiny_toml: Path, pictures: Path) -> None:
    words = ("--config", tiny_toml, "--precision", "bf16", "-o", "bf16.onnx")
    assert run("export", *words).status == 0
    done = run("predict", "bf16.onnx", pictures, status=1)
    assert "cannot run here: ONNX Runtime's CPU kernels have no bf16 matrix product" in done.err


def test_names_on_stdin(run: Run, onnx_file: Path, pictures: Path, stdin: Stdin) -> None:
    stdin(b"pictures/4.jpg\npictures/more\r\n\npictures/4.jpg\n")
    done = run("predict", onnx_file, "-", "pictures/[01].jpg", "--json", status=0)
    assert [row["image"] for row in done.json["results"]] == [
        f"pictures/{name}.jpg" for name in ("4", "more/5", "more/6", "0", "1")
    ]
    assert "note: 1 of 6 pictures were named before: each is taken once" in done.err
    stdin(b"pictures/4.jpg\0pictures/1.jpg")
    done = run.json("predict", onnx_file, "-0", "-")
    assert [row["image"] for row in done["results"]] == ["pictures/4.jpg", "pictures/1.jpg"]


def test_no_names_on_stdin(run: Run, onnx_file: Path, stdin: Stdin) -> None:
    stdin(b"\n\n")
    done = run("predict", onnx_file, "-", status=2)
    assert done.out == ""
    assert "stdin names no picture" in done.err


def cut(path: Path) -> None:
    path.write_bytes(Path("pictures/0.jpg").read_bytes()[:500])


def bomb(path: Path) -> None:
    Image.new("1", (20_000, 9_000)).save(path, "PNG")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (cut, "Truncated"),
        (lambda path: path.write_text("no picture"), "no picture format that Pillow knows"),
        (lambda path: path.write_bytes(b""), "no picture format that Pillow knows"),
        (bomb, "decompression bomb"),
        (lambda path: None, "No such file or directory"),
        (lambda path: os.mkfifo(path), "no regular file"),
        (lambda path: path.symlink_to("nowhere"), "No such file or directory"),
    ],
    ids=["truncated", "text", "empty", "bomb", "missing", "pipe", "dangling link"],
)
def test_a_picture_that_cannot_be_read(
    run: Run, onnx_file: Path, pictures: Path, make: Callable[[Path], object], reason: str
) -> None:
    make(Path("bad.jpg"))
    done = run(
        "predict", onnx_file, "pictures/0.jpg", "bad.jpg", "pictures/1.jpg", "--json", status=3
    )
    found = done.json
    assert [r["image"] for r in found["results"]] == ["pictures/0.jpg", "pictures/1.jpg"]
    (bad,) = found["unreadable"]
    assert bad["image"] == "bad.jpg" and reason in bad["reason"]
    assert done.err.splitlines()[-1] == "error: 1 of 3 pictures cannot be read"
    assert bad["reason"] in run("predict", onnx_file, "pictures/0.jpg", "bad.jpg", status=3).out


@pytest.mark.parametrize("size", [(1, 1), (20_000, 20), (20, 20_000)])
def test_a_picture_of_odd_size(run: Run, onnx_file: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (200, 30, 90)).save("odd.png")
    done = run.json("predict", onnx_file, "odd.png", status=0)
    plain = preprocess(Image.new("RGB", (40, 40), (200, 30, 90)), 32)
    (logits,) = onnxruntime.InferenceSession(onnx_file).run(None, {"image": plain[None]})
    assert done["results"][0]["top"][0]["index"] == logits.argmax()


@pytest.mark.parametrize("source", ["empty", "empty/*.jpg", "a.jpg"])
def test_a_source_that_means_no_picture(run: Run, onnx_file: Path, source: str) -> None:
    """A folder may be named like a picture."""
    Path("empty").mkdir()
    Path("a.jpg").mkdir()
    message = run.fails("ImageError", "predict", onnx_file, source, "--csv", "table.csv")
    assert f"{source} {'matches' if '*' in source else 'holds'} no picture" in message
    assert not Path("table.csv").exists()


def test_names_that_are_no_utf8(run: Run, onnx_file: Path, pictures: Path) -> None:
    folder = Path("odd")
    folder.mkdir()
    content = (pictures / "0.jpg").read_bytes()
    for name in (b"caf\xe9.jpg", b"new\nline.jpg", "日本.jpg".encode(), b'a,"b".jpg'):
        Path(os.fsdecode(b"odd/" + name)).write_bytes(content)
    Path(os.fsdecode(b"odd/cut\xff.jpg")).write_bytes(content[:500])
    shown = ['odd/a,"b".jpg', "odd/caf\\xe9.jpg", "odd/new\\nline.jpg", "odd/日本.jpg"]
    done = run("predict", onnx_file, "odd", "--csv", "t.csv", "--json", status=3)
    done.out.encode()  # no surrogates
    assert sorted(row["image"] for row in done.json["results"]) == shown
    (bad,) = done.json["unreadable"]
    assert bad["image"] == "odd/cut\\xff.jpg" and "odd/cut\\xff.jpg" in bad["reason"]
    with open("t.csv", encoding="utf-8", newline="") as file:
        assert sorted(row[0] for row in csv.reader(file)) == sorted(
            [*shown, "image", "odd/cut\\xff.jpg"]
        )
    table = run("predict", onnx_file, "odd", status=3)
    for text in [*shown, "odd/cut\\xff.jpg"]:
        assert text in table.out


def test_names_from_a_pipe_that_are_no_utf8(onnx_file: Path, pictures: Path) -> None:
    """In a process of its own, where stdout is the locale's."""
    name = b"pictures/caf\xe9.jpg"
    Path(os.fsdecode(name)).write_bytes((pictures / "0.jpg").read_bytes())
    in_utf8 = environment() | {"LC_ALL": "C.UTF-8"}
    for words in (["--json"], []):
        arguments = ("predict", onnx_file, "-", *words)
        given: dict[str, Any] = {"stdin_text": os.fsdecode(name), "env": in_utf8}
        done = finish(*arguments, **given, errors="surrogateescape", status=0)
        shown = done.json["results"][0]["image"] if words else done.out
        assert "pictures/caf\\xe9.jpg" in shown


def test_many_pictures(run: Run, onnx_file: Path, pictures: Path) -> None:
    many = Path("many")
    many.mkdir()
    for index in range(62):
        name = f"{index:02}.jpg"
        os.link(pictures / "0.jpg", many / name) if index < 50 else (many / name).touch()
    (many / "zz.jpg").write_bytes((pictures / "0.jpg").read_bytes())
    done = run("predict", onnx_file, many, "--top", 1, status=3)
    assert done.out.count("many/") == 50 + 10
    assert "and 1 more pictures; --csv FILE and --json tell them all" in done.out
    assert "and 2 more without a class; --json names them all" in done.out
    assert done.err.splitlines()[-1] == "error: 12 of 63 pictures cannot be read"


def test_failed_check(run: Run, onnx_file: Path, pictures: Path, change_manifest: Change) -> None:
    change_manifest(onnx_file, verification={"status": "failed", "reason": "too far off"})
    done = run("predict", onnx_file, pictures, status=1)
    assert done.out == ""
    assert "failed its check (too far off)" in done.err
    assert run("predict", onnx_file, pictures, "--force").status == 0


def test_an_altered_artifact(run: Run, onnx_file: Path, pictures: Path) -> None:
    with onnx_file.open("ab") as file:
        file.write(b"x")
    assert "was altered" in run("predict", onnx_file, pictures, status=1).err


def test_a_file_without_manifest(run: Run, onnx_file: Path, pictures: Path, labels: Path) -> None:
    known = run.json("predict", onnx_file, pictures)["results"]
    foreign = onnx_file.rename("foreign.onnx")
    done = run.json("predict", foreign, pictures, "--labels", labels, status=0)
    assert classes_of(done["results"]) == classes_of(known)
    for row in done["results"]:
        assert row["top"][0]["label"] == f"number [{row['top'][0]['index']}], é"


def test_labels_that_do_not_fit(run: Run, onnx_file: Path, pictures: Path) -> None:
    Path("few.txt").write_text("one\n")
    message = run.fails("ArtifactError", "predict", onnx_file, pictures, "--labels", "few.txt")
    assert "few.txt has 1 label and the artifact 10 classes" in message


def test_as_many_classes_as_there_are(run: Run, onnx_file: Path, pictures: Path) -> None:
    assert len(run.json("predict", onnx_file, pictures, "--top", 10)["results"]) == 7


def test_nan_logits(run: Run, onnx_file: Path, pictures: Path, alter: Change) -> None:
    alter(onnx_file, scaled("head.bias", np.nan))
    done = run("predict", onnx_file, pictures, "--json", status=3)
    assert done.json["results"] == [] and len(done.json["not_finite"]) == 7
    assert done.err.splitlines()[-1] == "error: 7 of 7 gave NaN or infinity"
    assert "pictures/0.jpg: the artifact gives NaN" in run("predict", onnx_file, pictures).out


def test_an_interrupted_run_leaves_the_old_table(
    run: Run,
    onnx_file: Path,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    temporaries: Temporaries,
) -> None:
    Path("table.csv").write_text("old")

    stop = Mock(side_effect=KeyboardInterrupt)
    monkeypatch.setattr("t2t_deploy.cli._output.Output.progress", stop)
    run("predict", onnx_file, pictures, "--csv", "table.csv", status=130)
    assert Path("table.csv").read_text() == "old"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "Missing argument 'IMAGE...'"),
        ("x.jpg -0", "-0 is about names on stdin"),
        ("x.jpg --top 11", "--top is 11; the artifact gives 10 classes"),
        ("x.jpg --block 3 --output d", "--output is about a cluster; add --ray"),
        ("x.jpg --ray", "--ray needs a folder for its Parquet files: add --output DIR"),
        ("x.jpg --ray auto --output d --csv x.csv", "--csv and --ray were given together"),
        ("x.jpg --output d --ray x.png", "--ray is 'x.png'; expected local, auto or HOST:PORT"),
    ],
)
def test_wrong_usage(run: Run, onnx_file: Path, words: str, message: str) -> None:
    done = run("predict", onnx_file, *words.split())
    assert (done.status, done.out) == (2, "")
    assert message in done.err
