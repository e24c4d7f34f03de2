"""What is known of an engine before it runs: its batches, the profile for one, its refusals."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import helper

from t2t_deploy._files import file_sha256
from t2t_deploy._optional import is_installed
from t2t_deploy.engine._device import device_capability
from t2t_deploy.engine._load import batch_profiles, choose_profile, load_engine, read_engine
from t2t_deploy.engine._module import load_tensorrt
from t2t_deploy.errors import ArtifactError, BackendError, EngineError, InputError
from t2t_deploy.runtime import SessionRequest
from t2t_deploy.runtime._session import batch_of
from t2t_deploy.runtime._trt_session import TENSORRT_RTX, buffer_bytes
from t2t_deploy.types import ShapeProfile, TensorSpec

from ..needs import needs_tensorrt_rtx
from ..onnx_models import save_model
from .graphs import build

needs_no_device = pytest.mark.skipif(
    device_capability() is not None, reason="a CUDA device is here: the engine may load"
)

IMAGE = TensorSpec("image", "float32", (None, 3, 8, 8))


def profiles(*texts: str) -> list[ShapeProfile]:
    return [ShapeProfile.parse(text) for text in texts]


@pytest.mark.parametrize(
    ("texts", "batch", "index"),
    [
        *((("1:1:4", "5:8:32"), batch, 0) for batch in (1, 2, 4)),
        *((("1:1:4", "5:8:32"), batch, 1) for batch in (5, 8, 16, 32)),
        (("1:1:32", "1:16:32"), 2, 0),
        (("1:1:32", "1:16:32"), 12, 1),
        (("1:32:32", "1:1:32"), 1, 1),
        (("1:8:32", "8:8:8"), 8, 1),  # equally near: the narrower
        (("1:8:32", "1:8:32"), 8, 0),  # the same: the first
    ],
)
def test_the_profile_tuned_nearest(texts: tuple[str, ...], batch: int, index: int) -> None:
    assert choose_profile(profiles(*texts), batch) == index


def test_a_batch_that_no_profile_takes() -> None:
    with pytest.raises(InputError) as raised:
        choose_profile(profiles("1:1:4", "8:8:8"), 6)
    assert str(raised.value) == (
        "the batch is 6; this engine takes 1 to 4, 8: split or pad the batch, or build with a "
        "profile that includes 6, such as 1:6:6"
    )


def test_batches_of_a_free_and_of_a_fixed_engine() -> None:
    shapes = [[(batch, 3, 8, 8) for batch in batches] for batches in ((1, 2, 4), (8, 8, 32))]
    assert batch_profiles([IMAGE], {"image": shapes}) == tuple(profiles("1:2:4", "8:8:32"))
    fixed = TensorSpec("image", "float32", (4, 3, 8, 8))
    assert batch_profiles([fixed], {"image": []}) == tuple(profiles("4:4:4"))


@pytest.mark.parametrize(
    ("other", "ranges", "text"),
    [
        (TensorSpec("mask", "float32", (None,)), [[(1,), (1,), (2,)]], "disagree about the batch"),
        (TensorSpec("mask", "float32", (4,)), [[(4,), (4,), (4,)]], "disagree about the batch"),
        (TensorSpec("mask", "float32", (None, None)), [], "leaves more than the batch free"),
        (TensorSpec("mask", "float32", ()), [], "has no batch"),
    ],
)
def test_batches_that_make_no_sense(
    other: TensorSpec, ranges: list[list[tuple[int, ...]]], text: str
) -> None:
    shapes = [[(1, 3, 8, 8), (1, 3, 8, 8), (4, 3, 8, 8)]]
    with pytest.raises(EngineError, match=text):
        batch_profiles([IMAGE, other], {"image": shapes, "mask": ranges})


def test_one_batch_of_all_inputs() -> None:
    mask = TensorSpec("mask", "float32", (None,))
    feeds = {"image": np.zeros((2, 3, 8, 8), np.float32), "mask": np.zeros(2, np.float32)}
    assert batch_of([IMAGE, mask], feeds) == 2
    feeds["mask"] = np.zeros(3, np.float32)
    with pytest.raises(InputError, match=r"batches differ \(image 2, mask 3\)"):
        batch_of([IMAGE, mask], feeds)


def test_buffer_sizes() -> None:
    assert buffer_bytes(IMAGE, (32, 3, 224, 224)) == 32 * 3 * 224 * 224 * 4
    assert buffer_bytes(TensorSpec("x", "float16", (None, 10)), (4, 10)) == 80
    with pytest.raises(BackendError, match=r"the shape of 'image' .* is unknown"):
        buffer_bytes(IMAGE, (-1, 3, 8, 8))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real engine of one operator."""
    folder = tmp_path_factory.mktemp("engine")
    nodes = [helper.make_node("Relu", ["image"], ["logits"])]
    save_model(folder / "relu.onnx", nodes, [], ["batch", 3], ["batch", 3])
    path = folder / "relu.engine"
    path.write_bytes(build(folder / "relu.onnx", pin_figures=False).engine)
    return path


@needs_tensorrt_rtx
@needs_no_device
def test_an_engine_where_no_device_is(engine: Path) -> None:
    with pytest.raises(BackendError) as raised:
        load_engine(load_tensorrt(), engine.read_bytes(), engine.name)
    message = str(raised.value)
    assert message.startswith("relu.engine does not load: no CUDA device: ")
    assert "(cudaError " in message
    assert message.endswith("run it on a machine with a GPU that it was built for")


@needs_tensorrt_rtx
@needs_no_device
@pytest.mark.skipif(not is_installed("cuda.bindings.runtime"), reason="cuda.bindings is missing")
def test_a_session_where_no_device_is(engine: Path) -> None:
    with pytest.raises(BackendError, match=r"^cudaGetDeviceCount failed: .+ \(cudaError\w+, \d+\)"):
        TENSORRT_RTX.open(SessionRequest("tensorrt-rtx", engine, sha256=file_sha256(engine)))
    with pytest.raises(ArtifactError, match="there is no file"):
        TENSORRT_RTX.open(SessionRequest("tensorrt-rtx", engine.with_name("none")))


def test_only_a_trusted_engine_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.engine"
    path.write_bytes(b"engine")
    assert read_engine(path, file_sha256(path)) == b"engine"
    with pytest.raises(ArtifactError, match="build one first: t2t-deploy build-trt"):
        read_engine(tmp_path / "none.engine", None)
    with pytest.raises(EngineError, match=r"a\.engine is not trusted, .*option trust"):
        read_engine(path, None)
    checked = file_sha256(path)
    path.write_bytes(b"another")  # between the check and the load
    with pytest.raises(EngineError, match=r"a\.engine changed after it was checked"):
        read_engine(path, checked)


def test_the_runtimes_own_words_are_told() -> None:
    """Bytes of another release, as the module says it; without a device the real one sees none."""

    class Logger:
        def __init__(self) -> None:
            pass

    class Runtime:
        def __init__(self, logger: Logger) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, serialized: bytes) -> None:
            severity = SimpleNamespace(name="ERROR")
            self.logger.log(severity, "version tag\n  does not match")  # type: ignore[attr-defined]

    trt = SimpleNamespace(ILogger=Logger, Runtime=Runtime, __version__="1.2")
    with pytest.raises(EngineError) as raised:
        load_engine(trt, b"", "a.engine")
    assert str(raised.value) == (
        "a.engine does not load: the runtime does not load it: version tag does not match; build "
        "it with the installed version, 1.2"
    )
