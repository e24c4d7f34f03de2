"""What a recipe may say: each refusal is one line with the file, the table, the key, the remedy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from t2t_deploy.errors import RecipeError
from t2t_deploy.model import VARIANTS
from t2t_deploy.recipe import example_recipe, load_recipe, plan_steps, write_example
from t2t_deploy.recipe._tables import TABLES
from t2t_deploy.types import Precision

from .conftest import refusal, uncommented, write

MODEL = '[model]\nvariant = "7"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[modle]\n", "has the unknown table 'modle'; did you mean 'model'?"),
        ("[quantise]\n", "has the unknown table 'quantise'; did you mean 'quantize'?"),
        ("[zzz]\n", "has the unknown table 'zzz'; known tables: model, expected, export,"),
        ('worksapce = "a"\n', "has the unknown key 'worksapce'; did you mean 'workspace'?"),
        ('checkpoint = "a"\n', "has the unknown key 'checkpoint'; it belongs into [model]"),
        ("workspace = 1\n", "workspace is 1; expected a path, as text"),
        (
            '[model]\nvarient = "7"\n',
            "[model] has the unknown key 'varient'; did you mean",
        ),
        ("[model]\nimage_size = 64\n", "did you mean 'image-size'?"),
        ("[model]\nimages = 'x'\n", "it belongs into [calibrate] or [verify] or [evaluate]"),
        ("[model]\nvariant = 14\n", "[model]: variant is 14; expected a text"),
        ("[model]\nimage-size = true\n", "image-size is True; expected a whole number from 1"),
        ("[model]\nimage-size = 0\n", "image-size is 0; expected a whole number from 1"),
        ("[[model]]\n[[model]]\n", "has 2 tables [[model]]; expected one, [model]"),
        ("model = 3\n", "model is 3; expected a table: write [model] on a line of its own"),
        ("[export]\n", "nothing says which model it is about; expected variant, config or"),
        (
            '[model]\nvariant = "7"\nconfig = "x.toml"\n',
            "[model] has variant and config, which both describe the model; expected one of them",
        ),
        (MODEL + '[export]\nprecision = "int8"\n', "expected one of 'fp32', 'fp16', 'bf16'"),
        (MODEL + "[export]\nbatch = 'x'\n", "expected 'dynamic' or a whole number from 1"),
        (
            MODEL + '[[export]]\n[[export]]\ntail = "all"\n',
            "[[export]] number 2: tail is 'all'; expected one of 'logits', 'softmax', 'topk'",
        ),
        (MODEL + "[[export]]\n[[export]]\n", "two artifacts are called 'fp32'; expected a name"),
        (MODEL + "[calibrate]\n", "[calibrate] lacks images; expected a path, as text: add it"),
        (MODEL + "[quantize]\n", "expected [calibrate] with images, or mode = 'dynamic'"),
        (
            MODEL + "[quantize]\nmode = 'dynamic'\nmax-drop = 0.5\n",
            "[[quantize]] 'int8' has max-drop alone; expected max-drop, the budget in points, and",
        ),
        (MODEL + "[quantize]\nmax-drop = '1'\n", "max-drop is '1'; expected a number"),
        (MODEL + "[quantize]\nmax-drop = nan\n", "max-drop is nan; expected a number"),
        (
            MODEL + f"[quantize]\nmax-drop = 1{'0' * 400}\n",
            f"max-drop is 1{'0' * 59}...; expected a number",
        ),
        (
            MODEL + f"[quantize]\nmax-drop = 0x{'f' * 9000}\n",
            "max-drop is a very large number; exp",
        ),
        (
            MODEL + "[quantize]\nmode = 'dynamic'\nfrom = 'x'\n",
            "[[quantize]] is made from 'x', and no [[export]] has that name; expected one of",
        ),
        (
            MODEL + "[[export]]\n[[export]]\nname = 'b'\n[quantize]\nmode = 'dynamic'\n",
            "[[quantize]] does not say what it is made from; expected from = one of 'fp32', 'b'",
        ),
        (
            MODEL + "[build-trt]\nprecision = 'int8'\n",
            "[[build-trt]] 'engine-int8' has precision 'int8' and is made from 'fp32', which is "
            "fp32; expected a [[quantize]] of that type with target = 'tensorrt', named in from",
        ),
        (MODEL + "[build-trt]\nprofile = '1:2'\n", "expected MIN:OPT:MAX, as in 1:8:32"),
        (MODEL + "[build-trt]\nprofile = []\n", "expected MIN:OPT:MAX, or a list of such"),
        (MODEL + "[build-trt]\nsm = 'ninety'\n", "expected capabilities such as '86,89', or"),
        (MODEL + "[bench]\nbackend = ['eagre']\n", "expected one of 'eager', 'compile', 'ort-cpu'"),
        (MODEL + "[bench]\ndevice = 'gpu'\n", "expected 'cuda:0', 'cuda:1' and so on"),
        (MODEL + "[bench]\nreport = 'a.pdf'\n", "expected a path that ends in .html or .htm"),
        (MODEL + "[bench]\ncompare = 'a.json'\n", "expected report = 'FILE.html' beside it"),
        (
            MODEL + "[bench]\nreport = 'a.html'\n[export]\noutput = 'a.html'\n",
            "two steps write ",
        ),
        (MODEL + "[expected]\nsha256 = 'abc'\n", "expected 64 hexadecimal digits"),
        (MODEL + "[expected]\ntop1-within = 1\n", "has top1-within without top1"),
        (MODEL + "[expected]\ntop1 = 'high'\n", "top1 is 'high'; expected a number"),
        ("[model\n", "is not valid TOML: "),
        ("x = " + "[" * 20000, "is not valid TOML: "),
        ("x = 1" + "0" * 9000, "is not valid TOML: "),
        ("\x00", "is not valid TOML: "),
    ],
)
def test_a_refusal_is_one_line_and_names_the_remedy(
    tmp_path: Path, text: str, message: str
) -> None:
    assert message in refusal(write(tmp_path, text))


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="No such file or directory; name a recipe, or"):
        load_recipe(tmp_path / "none.toml")
    with pytest.raises(RecipeError, match="Is a directory"):
        load_recipe(tmp_path)
    large = write(tmp_path, "#" * ((1 << 20) + 1))
    assert "more than 1 MiB" in refusal(large)
    large.write_bytes(b"\xff\xfe")
    assert "is not valid TOML" in refusal(large)


@pytest.mark.parametrize("table", list(TABLES))
def test_every_key_misspelt_names_the_nearest(tmp_path: Path, table: str) -> None:
    for key in TABLES[table].keys:
        said = refusal(write(tmp_path, f"[{table}]\n{key}x = 1\n"))
        assert re.findall(r"did you mean '([a-z0-9-]+)'\?", said) == [key]


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    text = (
        'workspace = "w"\n[model]\ncheckpoint = "c.pth"\n[export]\noutput = "o/x.onnx"\n'
        '[calibrate]\nimages = "t"\n[evaluate]\nimages = "/v"\nconfusion = "c.png"\n'
        '[bench]\nreport = "r.html"\n[package]\ntriton = "m"\nlabels = "l.txt"\n'
    )
    recipe = load_recipe(write(folder, text))
    assert recipe.workspace == folder / "w"
    (export,), (package,) = recipe.exports, recipe.packages
    assert export.given["checkpoint"] == folder / "c.pth"
    assert export.given["output"] == folder / "o" / "x.onnx"
    assert recipe.calibration is not None and recipe.calibration.given["images"] == folder / "t"
    assert recipe.evaluate is not None and recipe.evaluate.given["images"] == Path("/v")
    assert recipe.evaluate.given["confusion"] == folder / "c.png"
    assert recipe.bench is not None and recipe.bench.given == {"report": folder / "r.html"}
    assert package.given["triton"] == folder / "m" and package.given["labels"] == folder / "l.txt"


def test_defaults_are_those_of_the_commands(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, MODEL + "[build-trt]\nprecision = 'fp16'\n[bench]\n"))
    (export,), (build,) = recipe.exports, recipe.builds
    assert export.name == "fp32" and export.given == {"variant": "7"}
    assert build.name == "engine-fp16" and build.source == "fp32"
    assert build.given == {"precision": Precision.FP16}
    assert recipe.bench is not None and recipe.bench.given == {}
    assert [step.label for step in plan_steps(recipe)] == [
        *("export fp32", "build-trt engine-fp16", "bench")
    ]


def test_ranges_are_taken_once_for_each_graph(tmp_path: Path) -> None:
    text = MODEL + (
        "[[export]]\nname = 'a'\n[[export]]\nname = 'b'\ntarget = 'cpu'\n"
        "[calibrate]\nimages = 't'\n"
        "[[quantize]]\nname = 'a8'\nfrom = 'a'\n"
        "[[quantize]]\nname = 'a8d'\nfrom = 'a'\nmode = 'dynamic'\n"
        "[[quantize]]\nname = 'b8'\nfrom = 'b'\n"
        "[[quantize]]\nname = 'b8d'\nfrom = 'b'\nmode = 'dynamic'\n"
        "[[quantize]]\nname = 'f8'\nfrom = 'a'\ntype = 'fp8'\n"
    )
    steps = [step.label for step in plan_steps(load_recipe(write(tmp_path, text)))]
    # dynamic ranges are for the CPU, fp8 for TensorRT
    assert steps == [
        *("export a", "export b", "calibrate a8", "quantize a8", "calibrate a8d", "quantize a8d"),
        *("calibrate b8", "quantize b8", "quantize b8d", "calibrate f8", "quantize f8"),
    ]


def test_the_example_is_a_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, example_recipe()))
    assert [step.label for step in plan_steps(recipe)] == [
        *("export float", "export gpu", "quantize int8", "build-trt engine"),
        *("verify", "bench", "report", "package int8"),
    ]
    whole = uncommented(example_recipe())
    assert whole.count("\n#") > 10  # prose is left
    recipe = load_recipe(write(tmp_path, whole))
    assert recipe.expected is not None and recipe.expected.params == VARIANTS["7"].params
    assert [step.label for step in plan_steps(recipe)] == [
        *("model", "export float", "export gpu", "calibrate int8", "quantize int8"),
        *("build-trt engine", "verify", "evaluate", "bench", "report", "package int8"),
    ]


def test_the_example_is_never_written_over_a_file(tmp_path: Path) -> None:
    path = write(tmp_path, "mine")
    with pytest.raises(RecipeError, match="is there already and may be a recipe of yours"):
        write_example(path)
    assert path.read_text() == "mine"
