"""One session in many threads, and many sessions one after the other."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from t2t_deploy._codec import to_plain
from t2t_deploy.errors import BackendError
from t2t_deploy.graph._file import mappable_model
from t2t_deploy.runtime import Session, SessionRequest, open_session
from t2t_deploy.runtime._ort import OrtSession
from t2t_deploy.types import TensorSpec

from ..needs import needs_openvino
from ..onnx_models import int8_product
from ..program import finish

THREADS = 16
# a session that leaks a kibibyte a cycle is no session; below it the allocator's own noise begins
MAX_LEAK_BYTES = 1024
MAX_GROWN_MIB = 16


@pytest.fixture(scope="module")
def each(
    requests: Mapping[str, SessionRequest], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, SessionRequest]:
    """How to open each kind of session: the tiny model's, and an int8 graph's."""
    codes = np.random.default_rng(0).integers(-127, 128, (256, 64))
    int8 = int8_product(tmp_path_factory.mktemp("int8") / "int8.onnx", codes, 1 / 256)
    assert all(mappable_model(path).mapped_bytes for path in (requests["ort-cpu"].path, int8))
    names = ("eager", "ort-cpu", "openvino")
    return {
        **{name: replace(requests[name], threads=1) for name in names},
        **{f"{name}-int8": SessionRequest(name, int8, 1) for name in names[1:]},
        **{f"{name}, 2 streams": replace(requests[name], threads=2, streams=2) for name in names},
        "ort-cpu, 2 streams of 2": replace(requests["ort-cpu"], threads=4, streams=2),
    }


KINDS = [
    "eager",
    "ort-cpu",
    "ort-cpu-int8",
    pytest.param("openvino", marks=needs_openvino),
    pytest.param("openvino-int8", marks=needs_openvino),
]

STREAMS = [
    *("eager, 2 streams", "ort-cpu, 2 streams", "ort-cpu, 2 streams of 2"),
    pytest.param("openvino, 2 streams", marks=needs_openvino),
]


def feeds_of(session: Session, batch: int, seed: int) -> dict[str, np.ndarray]:
    (spec,) = session.inputs
    shape = (batch, *(int(dim or 1) for dim in spec.shape[1:]))
    values = np.random.default_rng(seed).standard_normal(shape)
    return {spec.name: values.astype(spec.dtype)}


def bits(session: Session, feeds: Mapping[str, np.ndarray]) -> bytes:
    (found,) = session.run(feeds).values()
    return found.tobytes()


@pytest.mark.parametrize("kind", KINDS + STREAMS)
@pytest.mark.parametrize("calls", [192, pytest.param(10_000, marks=pytest.mark.slow)])
def test_threads_get_the_bits_that_one_alone_gets(
    each: Mapping[str, SessionRequest], kind: str, calls: int
) -> None:
    with open_session(each[kind]) as session:
        # three sizes: OpenVINO computes two in pieces until they come often
        given = [feeds_of(session, 1 + seed // 4, seed) for seed in range(12)]
        alone = [bits(session, feeds) for feeds in given]
        assert len(set(alone)) == len(given)
        start = threading.Barrier(THREADS)

        def work(thread: int) -> int:
            start.wait(60)
            wrong = 0
            for number in range(thread, calls, THREADS):
                # mostly one size, as in serving; every 64th call another
                which = number % 4 if number % 64 else 4 + number // 64 * 5 % 8
                wrong += bits(session, given[which]) != alone[which]
            return wrong

        with ThreadPoolExecutor(THREADS) as pool:
            assert sum(pool.map(work, range(THREADS))) == 0


@pytest.mark.parametrize("kind", STREAMS)
def test_streams_give_the_bits_of_a_session_of_one(
    each: Mapping[str, SessionRequest], kind: str
) -> None:
    """Whose threads are those of a stream."""
    request = each[kind]
    one = replace(request, threads=request.threads_each, streams=1)
    with open_session(request) as session, open_session(one) as alone:
        given = [feeds_of(session, 1, seed) for seed in range(8)]
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda feeds: bits(session, feeds), given))
        assert found == [bits(alone, feeds) for feeds in given]


@pytest.mark.parametrize("kind", KINDS + STREAMS)
def test_closing_while_others_run(each: Mapping[str, SessionRequest], kind: str) -> None:
    """A call gives the right bits or is refused in the usual words; nothing else comes of it."""
    session = open_session(each[kind])
    feeds = feeds_of(session, 1, 0)
    alone = bits(session, feeds)
    running = threading.Barrier(5)
    found: list[BaseException | bytes] = []

    def work() -> None:
        running.wait(60)
        try:
            while True:
                answer = bits(session, feeds)
                if answer != alone:
                    found.append(answer)
        except BaseException as err:
            found.append(err)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    running.wait(60)
    session.close()
    for thread in threads:
        thread.join(60)
    assert [type(each) for each in found] == [BackendError] * 4
    assert {str(each) for each in found} == {"the session is closed; open a new one"}
    session.close()
    with pytest.raises(BackendError, match="the session is closed; open a new one"):
        session.run(feeds)


@pytest.mark.parametrize("kind", ["eager", "ort-cpu"])
def test_what_is_closed_in_the_middle_of_a_call_finishes_it(
    each: Mapping[str, SessionRequest], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session(each[kind])
    feeds = feeds_of(session, 1, 0)
    alone = bits(session, feeds)
    from_numpy = torch.from_numpy

    def closing(array: np.ndarray) -> Any:
        session.close()
        return from_numpy(array)

    class Closing(tuple[TensorSpec, ...]):
        def __iter__(self) -> Iterator[TensorSpec]:
            session.close()
            return super().__iter__()

    if kind == "eager":
        monkeypatch.setattr(torch, "from_numpy", closing)
    else:
        assert isinstance(session, OrtSession)
        session.outputs = Closing(session.outputs)
    assert bits(session, feeds) == alone
    with pytest.raises(BackendError, match=r"^the session is closed; open a new one$"):
        session.run(feeds)


def counted(request: SessionRequest, cycles: int, *words: str) -> dict[str, np.ndarray]:
    code = "from tests.runtime.cycles import main; main()"
    arguments = (json.dumps(to_plain(request)), cycles, *words)
    root = Path(__file__).parents[2]
    done = finish(*arguments, code=code, cwd=root, timeout_s=3600, status=0)
    return {name: np.array(values) for name, values in done.json.items()}


def check_kept(found: Mapping[str, np.ndarray], first: int) -> None:
    """Files and threads stay as many from a cycle on."""
    for name in ("files", "threads"):
        assert set(found[name][first:]) == {found[name][first]}, found[name]


def bytes_a_cycle(found: Mapping[str, np.ndarray]) -> float:
    """How resident memory grows, once the libraries have what they keep."""
    rss = found["rss"][300:]
    return float(np.polyfit(np.arange(len(rss)), rss, 1)[0])


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="counts files in /proc")


@needs_proc
@pytest.mark.parametrize(
    "kind", ["ort-cpu-int8", pytest.param("openvino-int8", marks=needs_openvino)]
)
def test_a_closed_session_leaves_no_file_and_no_thread(
    each: Mapping[str, SessionRequest], kind: str
) -> None:
    found = counted(each[kind], 20)
    check_kept(found, 5)


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_sessions_leak_nothing(
    each: Mapping[str, SessionRequest], kind: str, record_property: Callable[[str, Any], None]
) -> None:
    found = counted(each[kind], 1000)
    check_kept(found, 100)
    slope = bytes_a_cycle(found)
    print(f"{kind}: {slope:.0f} bytes a cycle, {found['rss'][-1] / 2**20:.0f} MiB at the end")
    if kind == "eager":
        # safetensors (0.6.2 to 0.9.0rc1) keeps two objects of each tensor that it reads
        reading = bytes_a_cycle(counted(each[kind], 1000, "file"))
        print(f"reading its weights alone: {reading:.0f} bytes a cycle")
        slope -= reading
    record_property("bytes_a_cycle", slope)
    assert slope < MAX_LEAK_BYTES


@needs_proc
@pytest.mark.parametrize(
    "kind",
    [
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("eager", "ort-cpu")),
        *(pytest.param(kind, marks=needs_openvino) for kind in ("openvino", "openvino-int8")),
    ],
)
def test_a_thousand_mixed_batches_settle_in_memory(
    each: Mapping[str, SessionRequest], kind: str
) -> None:
    found = counted(each[kind], 100, "mixed")  # ten calls each
    check_kept(found, 10)
    grown = (found["rss"][-10:].max() - found["rss"][10]) / 2**20
    print(f"{kind}: {grown:.1f} MiB, {found['rss'][-1] / 2**20:.0f} MiB at the end")
    assert grown < MAX_GROWN_MIB


@needs_proc
@pytest.mark.parametrize("kind", ["ort-cpu", pytest.param("openvino", marks=needs_openvino)])
def test_a_session_that_does_not_open_leaves_nothing(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "nonsense.onnx"
    path.write_bytes(bytes(range(256)) * 64)
    found = counted(SessionRequest(kind, path), 20, "refused")
    check_kept(found, 3)
