"""What a recipe is refused for when it is read: ranges of options, and what steps ask of others."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2t_deploy.recipe import load_recipe

from .conftest import refusal, write

MODEL = '[model]\nvariant = "7"\n'
FIXED = MODEL + '[export]\nname = "float"\nbatch = 4\n'
CALIBRATED = MODEL + '[calibrate]\nimages = "train"\n'
TOP1 = "[expected]\ntop1 = 71.7\n"
FOR_ENGINES = MODEL + '[export]\nprecision = "fp16"\ntarget = "tensorrt"\n'
ENGINE = FOR_ENGINES + '[build-trt]\nname = "engine"\nprofile = ["1:2:4", "8:8:16"]\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # ranges of one option
        ('[model]\nvariant = "77"\n', "[model]: there is no variant '77'; "),
        (MODEL + "image-size = 30\n", "[model]: "),
        (MODEL + "crop-fraction = 1.5\n", "crop-fraction is 1.5; expected a number above 0, at"),
        (MODEL + "std = [0.2, 0, 0.2]\n", "expected a number above 0 for each channel"),
        (MODEL + "mean = [0.5]\nstd = [0.2, 0.2, 0.2]\n", "mean has 1 numbers and std 3; expec"),
        (MODEL + "[export]\nopset = 25\n", "opset is 25; expected a whole number from 17 to 23"),
        (MODEL + "[export]\nsoft-split = 'sideways'\n", "'sideways' is no soft-split form; expec"),
        (MODEL + "[bench]\nrounds = 4\n", "rounds is 4; expected a whole number from 5"),
        (MODEL + "[package]\ntriton = 'm'\nname = 'a b'\n", "name is 'a b'; expected letters, d"),
        (MODEL + "[expected]\ntop1 = 717\n", "top1 is 717; expected a number from 0 to 100"),
        (MODEL + "[expected]\ntop1-within = -1\n", "top1-within is -1; expected a number from 0 "),
        # several options of one step
        (MODEL + "weights = 'ema'\n", "[model]: weights is about a checkpoint, and none is given"),
        (
            MODEL + "[export]\nprecision = 'bf16'\nsoft-split = 'folded'\n",
            "[[export]] 'bf16': soft split 'folded' is a convolution, which ONNX has in bf16 from",
        ),
        (
            MODEL + "[export]\ntarget = 'ncnn'\nembed-preprocess = true\n",
            "[[export]] 'fp32': a uint8 input for ncnn, whose reader refuses it; leave --embed-p",
        ),
        (
            MODEL + "num-classes = 1\n[export]\ntail = 'softmax'\n",
            "[[export]] 'fp32': the model has one output, whose softmax is 1 for every picture",
        ),
        (
            CALIBRATED + "[quantize]\ntype = 'fp8'\ntarget = 'cpu'\n",
            "[[quantize]] 'fp8': fp8 for cpu on an fp32 base; expected target tensorrt, base fp16",
        ),
        (
            CALIBRATED + "[quantize]\ntarget = 'cpu'\nplacement = 'compact'\n",
            "[[quantize]] 'int8': placement compact is for engines; expected target tensorrt",
        ),
        (
            CALIBRATED + "[quantize]\ntarget = 'openvino'\ncodes = 'vnni'\n",
            "codes vnni is for ONNX",
        ),
        (CALIBRATED + "[quantize]\nthreshold = 0.5\n", "threshold is about a drop; give max_drop "),
        # what would not be judged
        (MODEL + TOP1, "[expected]: top1 71.7 would not be compared, for the recipe has no [eval"),
        (
            MODEL + TOP1 + "[evaluate]\nimages = 'v'\ntargets = 't.csv'\n",
            "[expected]: top1 71.7 would not be compared, for targets of [evaluate] decides each c",
        ),
        (
            MODEL + "num-classes = 1\n" + TOP1 + "[evaluate]\nimages = 'v'\n",
            "[expected]: top1 71.7 would not be compared, for the model has one output",
        ),
        (
            MODEL + "num-classes = 9\n[expected]\nclasses = 10\n",
            "[expected]: classes is 10 and num-classes of [model] 9; expected the same",
        ),
        (
            MODEL + f"[expected]\nsha256 = '{'0' * 64}'\n",
            "[expected]: it has a sha256 and [model] no checkpoint; name the file, or leave",
        ),
        (
            MODEL + "[export]\ntail = 'tokens'\n[evaluate]\nimages = 'v'\n",
            "[evaluate]: it looks at classes, and no artifact has any ('fp32' gives tokens)",
        ),
        (
            CALIBRATED + "[quantize]\n[evaluate]\nimages = './train'\n",
            "[evaluate]: images are those of [calibrate], on which 'int8' cannot be judged; give",
        ),
        (
            CALIBRATED + "[quantize]\nmax-drop = 1\neval = 'train'\n",
            "[[quantize]] 'int8': eval names the pictures of [calibrate], on which no drop is mea",
        ),
        (
            MODEL
            + "[export]\ntail = 'embedding'\n"
            + "[quantize]\nmode = 'dynamic'\nmax-drop = 1\neval = 'v'\n",
            "[[quantize]] 'int8': max-drop is of classes, and 'fp32' gives embedding; leave max-dr",
        ),
        # batches
        (
            FIXED + "[bench]\n",
            "[bench]: no artifact takes batch 1: 'float' has its batch fixed at 4; set batch",
        ),
        (
            FIXED + "[bench]\nbatch = [4, 8]\n",
            "[bench]: no artifact takes batch 8: 'float' has its",
        ),
        (
            FIXED + "[bench]\nbatch = 4\nthreads = 2\nstreams = [1, 3]\n",
            "[bench]: streams is 3, threads 2; each stream takes a thread at least: ask for 2 or",
        ),
        (
            ENGINE + "[bench]\nbackend = 'tensorrt-rtx'\nbatch = 5\n",
            "'engine' takes 1:2:4, 8:8:16;",
        ),
        (
            MODEL + "[bench]\nbackend = 'tensorrt'\n",
            "[bench]: backend tensorrt runs engines, and the recipe builds none; add a [[build-trt",
        ),
        (
            FIXED + "[build-trt]\nprofile = '1:8:32'\n",
            "[[build-trt]] 'engine-fp32': the graph takes batches of exactly 4, and profile 1:8:32",
        ),
        (MODEL + "[package]\n", "[[package]] of 'fp32': package takes --triton DIR (a model rep"),
        (MODEL + "[package]\ntriton = 'm'\nweb = 'w'\n", "or --web DIR (a page); both are given"),
        (MODEL + "[package]\nweb = 'w'\nthreads = 2\n", "--threads is for --triton; leave it out"),
        (
            ENGINE + "[package]\nfrom = 'engine'\nweb = 'w'\n",
            "[[package]] of 'engine': no page can be made of 'engine': it is an engine, which no b",
        ),
        (
            FIXED + "[package]\nweb = 'w'\n",
            "[[package]] of 'float': no page can be made of 'float': it takes 4 pictures at a time",
        ),
        (
            MODEL + "[[package]]\nweb = 'w'\n[[package]]\nweb = 'w'\n",
            "[[package]] of 'fp32': another package has the folder ",
        ),
        (
            FIXED + "[package]\ntriton = 'm'\nmax-batch = 8\n",
            "[[package]] of 'float': --max-batch is 8 and the batch of 'float' fixed at 4; leave",
        ),
        (
            FIXED + "[package]\ntriton = 'm'\n",
            "[[package]] of 'float': 'float' takes exactly 4 pictures, Triton sends 1 to 4: make",
        ),
        (
            ENGINE + "[package]\nfrom = 'engine'\ntriton = 'm'\n",
            "[[package]] of 'engine': 'engine' takes batches of 1:2:4, 8:8:16, Triton sends all",
        ),
        # packages
        (
            MODEL + "[package]\ntriton = 'm'\nformat = 'tensorrt'\n",
            "[[package]] of 'fp32': --format is tensorrt and the artifact an ONNX file; build",
        ),
        (
            MODEL + "[export]\nprecision = 'bf16'\n[package]\ntriton = 'm'\n",
            "[[package]] of 'bf16': ONNX Runtime does not compute bf16 on the CPU; it does",
        ),
        (
            MODEL + "[export]\ntail = 'softmax'\n[package]\ntriton = 'm'\nactivation = 'sigmoid'\n",
            "[[package]] of 'fp32': activation is sigmoid, and the artifact gives probabilities",
        ),
        (
            MODEL + "[[package]]\ntriton = 'm'\n[[package]]\ntriton = 'm'\nformat = 'python'\n",
            "has the same name; give it a name of its own",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert message in refusal(write(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    [
        FIXED + "[bench]\nbatch = 4\n[package]\ntriton = 'm'\nformat = 'python'\n",
        FIXED + "[bench]\nbackend = ['eager', 'compile']\nbatch = 8\n",
        FIXED + "[bench]\nbatch = 4\nthreads = 2\nstreams = [1, 2]\n",
        # beside one that is measured
        MODEL + "[[export]]\n[[export]]\nname = 'b4'\nbatch = 4\n[bench]\nbatch = [1, 4, 8]\n",
        ENGINE + "[bench]\nbackend = 'tensorrt-rtx'\nbatch = [4, 8]\n",
        FIXED + "[build-trt]\nprofile = '4:4:4'\n[bench]\nbatch = 4\n",
        MODEL + TOP1 + "[evaluate]\nimages = 'v'\n",
        CALIBRATED + "[quantize]\nmode = 'dynamic'\n[evaluate]\nimages = 'train'\n",
        MODEL + "[[export]]\n[[export]]\nname = 'e'\ntail = 'tokens'\n[evaluate]\nimages = 'v'\n",
        MODEL + "[[package]]\ntriton = 'm'\n[[package]]\ntriton = 'm'\nname = 'other'\n",
    ],
)
def test_what_fits_is_read(tmp_path: Path, text: str) -> None:
    load_recipe(write(tmp_path, text))
