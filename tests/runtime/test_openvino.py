"""OpenVINO sessions: what is computed, in what, and what is refused instead of imitated."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

from t2t_deploy._optional import is_installed
from t2t_deploy.errors import ArtifactError, BackendError, InputError
from t2t_deploy.runtime import SessionRequest, _openvino, open_session, why_not_in
from t2t_deploy.runtime._openvino import Layers, OpenVinoSession, check_computed, pieces_of
from t2t_deploy.types import Precision

from ..needs import needs_openvino
from ..onnx_models import constants, int8_product, save_model
from ..program import finish

pytestmark = needs_openvino

WIDTH, CLASSES = 64, 32
WEIGHT = np.random.default_rng(0).standard_normal((WIDTH, CLASSES)).astype(np.float32)
NO_BF16 = None if not is_installed("openvino") else why_not_in("openvino", Precision.BF16)
needs_bf16 = pytest.mark.skipif(NO_BF16 is not None, reason=str(NO_BF16))
needs_no_bf16 = pytest.mark.skipif(NO_BF16 is None, reason="this CPU has bf16")

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """logits = image @ WEIGHT, (batch, 64) -> (batch, 32), float32 outside, typed within."""

    def model(precision: Precision = Precision.FP32, batch: int | None = None) -> Path:
        path = tmp_path / f"{precision.value}-{batch}.onnx"
        if precision is Precision.INT8:
            return int8_product(path, np.clip(np.round(WEIGHT * 32), -127, 127), 1 / 32)
        dtype = {
            Precision.FP32: np.float32,
            Precision.FP16: np.float16,
            Precision.BF16: ml_dtypes.bfloat16,
        }[precision]
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        product = ["image", "logits"] if precision is Precision.FP32 else ["typed", "product"]
        nodes = [helper.make_node("MatMul", [product[0], "weight"], [product[1]])]
        if precision is not Precision.FP32:
            first = helper.make_node("Cast", ["image"], ["typed"], to=kind)
            last = helper.make_node("Cast", ["product"], ["logits"], to=TensorProto.FLOAT)
            nodes = [first, *nodes, last]
        weights = constants({"weight": WEIGHT.astype(dtype)})
        return save_model(path, nodes, weights, [batch or "N", WIDTH], [batch or "N", CLASSES])

    return model


def opened(path: Path, **options: Any) -> OpenVinoSession:
    return OpenVinoSession(SessionRequest("openvino", path, **options))


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, WIDTH)).astype(np.float32)


def count_compiled(session: OpenVinoSession) -> list[int]:
    """The sizes that are compiled from now on, as they come."""
    compiled: list[int] = []
    compile_ = session._compile

    def counting(batch: int) -> Layers:
        compiled.append(batch)
        return compile_(batch)

    session._compile = counting  # type: ignore[method-assign]
    return compiled


def error_of(session: OpenVinoSession, count: int) -> float:
    image = pictures(count)
    wanted = image.astype(np.float64) @ WEIGHT.astype(np.float64)
    found = session.run({"image": image})["logits"]
    assert found.shape == wanted.shape and found.dtype == np.float32
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def test_a_free_batch_takes_any_size(write: Write) -> None:
    request = SessionRequest("openvino", write(), threads=1, precision=Precision.FP32)
    with open_session(request) as session:
        assert isinstance(session, OpenVinoSession)
        assert (session.backend, session.threads) == ("openvino", 1)
        assert [str(spec) for spec in (*session.inputs, *session.outputs)] == [
            "image float32 (N, 64)",
            "logits float32 (N, 32)",
        ]
        assert session.layers.products == {"f32": 1}
        for count in (1, 3, 2, 3, 1):
            assert error_of(session, count) < 1e-6


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
def test_mixed_sizes_are_compiled_a_few_times(write: Write, precision: Precision) -> None:
    sizes = np.random.default_rng(0).integers(1, 65, 200).tolist()
    with opened(write(precision), precision=precision, threads=1) as session:
        compiled = count_compiled(session)
        for count in sizes:
            assert error_of(session, count) < (1e-6 if precision is Precision.FP32 else 3e-2)
        assert list(session._requests) == [1, 16] and compiled == [16]


def test_sizes_that_come_often_are_compiled_for_themselves(write: Write) -> None:
    with opened(write(), batch=3) as session:
        compiled = count_compiled(session)
        for count in (3, 2, 2, 2):
            error_of(session, count)
        assert compiled == []  # as three pictures
        error_of(session, 2)
        assert compiled == [2]
        for count in range(4, 12):
            for _ in range(8):
                assert error_of(session, count) < 1e-6
        # with 3, and 16 that others may need, these are six
        assert compiled == [2, 4, 5, 6]


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
def test_the_bits_do_not_depend_on_what_came_before(write: Write, precision: Precision) -> None:
    path, count = write(precision), 23
    feeds = {"image": pictures(count)}
    with opened(path, threads=1) as mixed, opened(path, threads=1, batch=count) as regular:
        assert np.array_equal(mixed.run(feeds)["logits"], regular.run(feeds)["logits"])
        assert (list(mixed._requests), list(regular._requests)) == ([1, 16], [count])


@pytest.mark.parametrize(
    ("batch", "sizes", "pieces"),
    [
        (1, (1, 16), (1,)),
        (3, (1, 16), (1, 1, 1)),
        (7, (1, 16), (16,)),
        (20, (1, 16), (16, 1, 1, 1, 1)),
        (40, (1, 16), (16, 16, 16)),
        (5, (8, 16), (8,)),
        (23, (8, 16), (16, 8)),
        (50, (1, 16, 50), (50,)),
    ],
)
def test_a_batch_in_pieces(batch: int, sizes: tuple[int, ...], pieces: tuple[int, ...]) -> None:
    assert pieces_of(batch, sizes) == pieces


def test_pieces_hold_the_batch_and_only_the_last_is_filled_up() -> None:
    for sizes in ((1, 16), (8, 16), (3, 7, 16, 50), (5, 6, 9, 16, 31, 200)):
        for batch in range(1, 260):
            *full, last = pieces_of(batch, sizes)
            assert sum(full) < batch <= sum(full) + last


def test_outputs_without_a_batch_are_of_the_whole_batch(tmp_path: Path) -> None:
    mean = helper.make_node("ReduceMean", ["image"], ["logits"], axes=[0], keepdims=0)
    path = save_model(tmp_path / "mean.onnx", [mean], [], ["N", WIDTH], [WIDTH], opset=17)
    with opened(path) as session:
        compiled = count_compiled(session)
        for count in (1, 5, 40):
            found = session.run({"image": pictures(count)})["logits"]
            assert np.allclose(found, pictures(count).mean(0), atol=1e-6)
        assert compiled == []


@pytest.mark.parametrize("batch", [None, 2])
def test_calls_are_computed_at_once_in_as_many_streams(write: Write, batch: int | None) -> None:
    with opened(write(batch=batch), threads=2, streams=2, batch=2) as session:
        (requests,) = session._requests.values()
        compiled = requests[0].get_compiled_model()
        assert (compiled.get_property("NUM_STREAMS"), session.threads) == (2, 2)
        meeting, infer, used = threading.Barrier(2, timeout=20), session._infer, []

        def met(request: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            used.append(request)
            meeting.wait()
            return infer(request, feeds)

        session._infer = met  # type: ignore[method-assign]
        with ThreadPoolExecutor(2) as pool:
            assert max(pool.map(lambda _: error_of(session, 2), range(4))) < 1e-6
        assert {id(one) for one in used} == {id(one) for one in requests} and len(used) == 4


@pytest.mark.parametrize("usual", [None, 5])
def test_a_fixed_batch(write: Write, usual: int | None) -> None:
    with opened(write(batch=2), batch=usual) as session:
        assert session.inputs[0].shape == (2, WIDTH)
        assert error_of(session, 2) < 1e-6
        with pytest.raises(InputError, match=r"expected image float32 \(2, 64\)"):
            session.run({"image": pictures(3)})
    with pytest.raises(BackendError, match="the session is closed"):
        session.run({"image": pictures(2)})
    session.close()


def test_inputs_may_be_views_and_outputs_are_the_callers_own(write: Write) -> None:
    with opened(write()) as session:
        first = session.run({"image": pictures(2)})["logits"]
        before = first.copy()
        session.run({"image": -pictures(2)})
        assert np.array_equal(first, before)
        strided = np.repeat(pictures(2), 2, axis=1)[:, ::2]
        assert not strided.flags.c_contiguous
        assert np.array_equal(session.run({"image": strided})["logits"], before)


def test_int8_is_computed_in_integers(write: Write) -> None:
    with opened(write(Precision.INT8), precision=Precision.INT8) as session:
        assert set(session.layers.products) <= {"i8", "u8"} and session.layers.products
        assert 1e-4 < error_of(session, 4) < 3e-2
    with pytest.raises(BackendError, match=r"in another precision than int8 \(.*1 in f32\)"):
        opened(write(), precision=Precision.INT8)


@needs_no_bf16
@pytest.mark.parametrize("typed", [True, False], ids=["typed graph", "float32 graph"])
def test_bf16_is_refused_where_the_cpu_has_none(write: Write, typed: bool) -> None:
    path = write(Precision.BF16 if typed else Precision.FP32)
    # of a typed graph whatever is asked: float32 kernels would imitate it
    for asked in (Precision.BF16, *((None, Precision.FP32) if typed else ())):
        with pytest.raises(BackendError) as raised:
            opened(path, precision=asked)
        text = str(raised.value)
        assert text.startswith(f"OpenVINO cannot compute {path.name}: this CPU has no bf16 (")
        assert text.endswith("; use an fp32 artifact")


@needs_bf16
@pytest.mark.parametrize("typed", [True, False], ids=["typed graph", "float32 graph"])
def test_bf16_is_computed_in_bf16(write: Write, typed: bool) -> None:
    path = write(Precision.BF16 if typed else Precision.FP32)
    with opened(path, precision=Precision.BF16) as session:
        assert session.layers.products == {"bf16": 1}
        assert 1e-4 < error_of(session, 4) < 2e-2


@pytest.mark.parametrize(
    ("listed", "reason"),
    [
        (["FP32", "BF16", "INT8"], None),
        (["FP32", "INT8"], "this CPU has no bf16 (avx512_bf16, amx_bf16 or avx_ne_convert; "
         "OpenVINO lists FP32, INT8); use an fp32 artifact"),
    ],
)  # fmt: skip
def test_what_openvino_lists_decides(
    listed: list[str], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = SimpleNamespace(get_property=lambda device, name: listed)
    fake = SimpleNamespace(Core=lambda: core)
    monkeypatch.setattr(_openvino, "require", lambda module: fake)
    assert why_not_in("openvino", Precision.BF16) == reason
    assert why_not_in("openvino", Precision.FP32) is why_not_in("openvino", Precision.INT8) is None


@pytest.mark.parametrize("asked", [Precision.FP16, Precision.FP8])
def test_no_16_or_8_bit_floats_are_imitated(write: Write, asked: Precision) -> None:
    with pytest.raises(BackendError, match=f"would compute {asked.value} in float32"):
        opened(write(), precision=asked)
    if asked is Precision.FP16:  # the graph tells it by itself
        with pytest.raises(BackendError, match="would compute fp16 in float32"):
            opened(write(asked))


@pytest.mark.parametrize(
    ("asked", "every", "products", "message"),
    [
        (Precision.FP32, {"f32": 9, "i32": 2}, {"f32": 4}, None),
        (Precision.FP32, {"f32": 9, "bf16": 2}, {"f32": 4}, "layers of x in bf16; expected fp32"),
        (Precision.FP32, {"f32": 9, "u8": 2}, {"f32": 4}, "layers of x in u8; expected fp32"),
        (Precision.BF16, {"bf16": 9}, {"bf16": 3, "f32": 2}, None),
        (Precision.BF16, {"bf16": 9}, {"bf16": 2, "f32": 2},
         r"than bf16 \(of its products 2 in bf16, 2 in f32\)"),
        (Precision.BF16, {"f32": 9}, {}, r"than bf16 \(of its products none\)"),
        (Precision.INT8, {"f32": 9}, {"f32": 3, "u8": 1}, None),
        (Precision.INT8, {"f32": 9, "i8": 1}, {"f32": 3}, "than int8"),
        (None, {"f32": 9, "u8": 2}, {"u8": 4}, None),
    ],
)  # fmt: skip
def test_what_the_layers_must_compute_in(
    asked: Precision | None,
    every: Mapping[str, int],
    products: Mapping[str, int],
    message: str | None,
) -> None:
    layers = Layers(every, products)
    refused = nullcontext() if message is None else pytest.raises(BackendError, match=message)
    with refused:
        check_computed("x", asked, layers, ["CPU"])
    with pytest.raises(BackendError, match=r"runs x on GPU\.0; expected CPU"):
        check_computed("x", asked, layers, ["GPU.0"])


@pytest.mark.parametrize(
    ("base", "halves", "message"),
    [
        (None, 0, None),
        (Precision.BF16, 5, None),
        (None, 5, "computes 5 layers of x in bf16; its base is fp32"),
        (Precision.BF16, 0, "computes 0 layers of x in bf16; its base is bf16"),
    ],
)
def test_what_an_8_bit_graph_computes_around_its_products(
    base: Precision | None, halves: int, message: str | None
) -> None:
    layers = Layers({"f32": 4, "i8": 2, **({"bf16": halves} if halves else {})}, {"i8": 2})
    refused = nullcontext() if message is None else pytest.raises(BackendError, match=message)
    with refused:
        check_computed("x", Precision.INT8, layers, ["CPU"], base)


@needs_no_bf16
def test_a_bf16_base_is_refused_without_it(write: Write) -> None:
    with pytest.raises(BackendError, match="this CPU has no bf16"):
        opened(write(Precision.INT8), precision=Precision.INT8, base=Precision.BF16)


def test_what_is_compiled_is_kept(write: Write, tmp_path: Path) -> None:
    cache = tmp_path / "workspace" / "cache" / "openvino"

    def logits() -> tuple[np.ndarray, Any]:
        with opened(path, threads=1, cache=cache) as session:
            found = session.run({"image": pictures(1)})["logits"]
            compiled = session._requests[1][0].get_compiled_model()
            return found, compiled.get_property("LOADED_FROM_CACHE")

    path = write()
    fresh, loaded = logits()
    (blob,) = cache.glob("*.blob")
    assert not loaded
    kept, loaded = logits()
    assert loaded and np.array_equal(fresh, kept)
    # half a file, as of a process that was killed while it wrote
    blob.chmod(0o600)
    blob.write_bytes(blob.read_bytes()[: blob.stat().st_size // 2])
    again, loaded = logits()
    assert not loaded and np.array_equal(fresh, again)


def test_files_that_are_none(tmp_path: Path) -> None:
    missing, nonsense = tmp_path / "missing.onnx", tmp_path / "nonsense.onnx"
    with pytest.raises(ArtifactError, match=r"there is no file .*missing\.onnx; export"):
        opened(missing)
    nonsense.write_bytes(b"nonsense")
    with pytest.raises(ArtifactError, match=r"is no readable ONNX file \(") as e:
        opened(nonsense)
    assert "\n" not in str(e.value)


def test_importing_it_tells_nobody(tmp_path: Path) -> None:
    """openvino reports its import to its maker, and names the user by a file in the home folder."""
    program = "from t2t_deploy._optional import require; require('openvino').Core()"
    # nothing that would keep it quiet anyway
    names = ("SYSTEMROOT", "PATH", "LD_LIBRARY_PATH", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name in names}
    places = {name: str(tmp_path) for name in ("HOME", "USERPROFILE", "LOCALAPPDATA")}
    program += "; import sys; print(sys.modules['openvino_telemetry'])"
    root = Path(__file__).parents[2]
    done = finish(code=program, env=environment | places, cwd=root, timeout_s=120)
    assert (done.status, done.out) == (0, "None\n"), done.err
    assert list(tmp_path.iterdir()) == []
