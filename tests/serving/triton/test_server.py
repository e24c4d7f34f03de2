"""Packages in a real Triton server on the CPU: what is served is what is computed offline."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from natural import TEST, natural_crops, shipped
from triton_server import ServerError, ServerProcess

from t2t_deploy._optional import is_installed
from t2t_deploy.commands import package_artifact
from t2t_deploy.images import read_image, resize_and_crop
from t2t_deploy.runtime import SessionRequest, open_session
from t2t_deploy.serving.triton import Accelerator, ServingFormat
from t2t_deploy.workspace import Artifact, Workspace

from ...prepared import normalise, usual
from ...small import tiny_exports
from .conftest import by_batch, needs_server

pytestmark = needs_server
SIZE = 32


def pictures() -> list[bytes]:
    """Three photographs as they are shipped, and crops of them as JPEG."""
    files = [shipped(name).read_bytes() for name in TEST]
    for crop in natural_crops(9, 7, TEST):
        buffer = io.BytesIO()
        crop.save(buffer, "JPEG", quality=85)
        files.append(buffer.getvalue())
    return files


def offline(path: Path, pixels: np.ndarray) -> np.ndarray:
    """Logits of (N, S, S, 3) uint8 pictures, whatever form of them the model takes."""
    with open_session(SessionRequest("ort-cpu", path, threads=1)) as session:
        (spec,) = session.inputs
        taken = pixels if spec.dtype == "uint8" else normalise(pixels)
        return session.run({spec.name: taken})[session.outputs[0].name]


def pixels_of(files: list[bytes], folder: Path, size: int = SIZE) -> np.ndarray:
    """By way of files, as `predict` and `evaluate` read them."""
    found = []
    for content in files:
        (folder / "picture.jpg").write_bytes(content)
        found.append(resize_and_crop(read_image(folder / "picture.jpg"), usual(size)))
    return np.stack(found)


class Client:
    """Asks a server over gRPC."""

    def __init__(self, server: ServerProcess) -> None:
        import tritonclient.grpc as triton

        self._triton = triton
        self._client = triton.InferenceServerClient(server.grpc_url)

    def ask(
        self,
        model: str,
        name: str,
        array: np.ndarray,
        outputs: list[str] | None = None,
        top: int = 0,
    ) -> Any:
        """The answer; raises what the client raises. top: by Triton's classification extension."""
        kind = "BYTES" if array.dtype == object else {"f": "FP32", "u": "UINT8"}[array.dtype.kind]
        tensor = self._triton.InferInput(name, list(array.shape), kind)
        tensor.set_data_from_numpy(array)
        wanted = [self._triton.InferRequestedOutput(one, class_count=top) for one in outputs or ()]
        return self._client.infer(model, [tensor], outputs=wanted or None, client_timeout=60)

    def error(self, model: str, name: str, array: np.ndarray) -> str:
        """The message of a request that fails."""
        from tritonclient.utils import InferenceServerException

        with pytest.raises(InferenceServerException) as raised:
            self.ask(model, name, array)
        return str(raised.value.message())

    def close(self) -> None:
        self._client.close()


def as_bytes(files: list[bytes]) -> np.ndarray:
    array = np.empty((len(files), 1), object)
    array[:, 0] = files
    return array


@pytest.fixture(scope="module")
def of_pixels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with the normalisation inside."""
    folder = tmp_path_factory.mktemp("pixels")
    (made,) = tiny_exports(folder, {"embed_preprocess": True}).artifacts("onnx")
    return made.path


@pytest.fixture(scope="module")
def models(
    exported_once: Path, of_pixels: Path, labels: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """One repository: float input, uint8 input, a batch of exactly 4; python throughout."""
    folder = tmp_path_factory.mktemp("repository")
    floats = by_batch(Workspace(exported_once))
    for name, path, given in (
        ("floats", floats[None].path, labels),
        ("pixels", of_pixels, None),
        ("four", floats[4].path, None),
    ):
        package_artifact(
            path,
            triton=folder / "models",
            format=ServingFormat.PYTHON,
            name=name,
            labels=given,
            threads=1,
            queue_delay=20_000,
            workspace=path.parents[1],
        )
    return folder


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[ServerProcess]:
    with ServerProcess(models / "models", models / "server.log") as running:
        yield running


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    found = Client(server)
    yield found
    found.close()


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    return pictures()


@pytest.fixture(scope="module")
def graph(exported_once: Path) -> Path:
    return by_batch(Workspace(exported_once))[None].path


def close_to(found: np.ndarray, wanted: np.ndarray) -> None:
    off = np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    assert off.max() <= 1e-5


def test_pictures_in_classes_out(
    client: Client, files: list[bytes], graph: Path, tmp_path: Path
) -> None:
    """JPEGs one by one and many at a time: logits and top 5 of the offline run."""
    wanted = offline(graph, pixels_of(files, tmp_path))
    order = np.argsort(-wanted, axis=1, kind="stable")[:, :5]
    powers = np.exp(wanted.astype(np.float64))
    shares = np.take_along_axis(powers / powers.sum(axis=1, keepdims=True), order, axis=1)
    for requests in ([files], [[content] for content in files]):
        answers = [client.ask("floats_images", "image", as_bytes(some)) for some in requests]
        found = {
            name: np.concatenate([answer.as_numpy(name) for answer in answers])
            for name in ("logits", "index", "probability", "label")
        }
        close_to(found["logits"], wanted)
        np.testing.assert_array_equal(found["index"], order)
        np.testing.assert_allclose(found["probability"], shares, rtol=1e-5)
        assert found["label"].tolist() == [[b"class %d" % i for i in row] for row in order]


@pytest.mark.parametrize("outputs", [["logits"], ["index"], ["label", "probability"]])
def test_some_of_the_outputs(client: Client, files: list[bytes], outputs: list[str]) -> None:
    every = client.ask("floats_images", "image", as_bytes(files[:2]))
    some = client.ask("floats_images", "image", as_bytes(files[:2]), outputs)
    for name in outputs:
        np.testing.assert_array_equal(some.as_numpy(name), every.as_numpy(name))


def test_tritons_own_classification(client: Client, files: list[bytes]) -> None:
    """Labels are Triton's too, by the model and by the ensemble."""
    answer = client.ask("floats_images", "image", as_bytes(files[:1]))
    (best,) = answer.as_numpy("index")[:, 0]
    told = client.ask("floats_images", "image", as_bytes(files[:1]), ["logits"], top=1)
    assert told.as_numpy("logits")[0, 0].decode().endswith(f":{best}:class {best}")
    zeros = np.zeros((1, 3, SIZE, SIZE), np.float32)
    told = client.ask("floats", "image", zeros, ["logits"], top=1)
    assert re.fullmatch(r"-?[\d.]+:(\d):class \1", told.as_numpy("logits")[0, 0].decode())


def test_uint8_models(client: Client, files: list[bytes], of_pixels: Path, tmp_path: Path) -> None:
    pixels = pixels_of(files, tmp_path)
    wanted = offline(of_pixels, pixels)
    close_to(client.ask("pixels", "image", pixels).as_numpy("logits"), wanted)
    found = client.ask("pixels_images", "image", as_bytes(files))
    close_to(found.as_numpy("logits"), wanted)


def test_a_fixed_batch_is_filled_up(
    client: Client, files: list[bytes], graph: Path, tmp_path: Path
) -> None:
    for count in (1, 3, 4):
        wanted = offline(graph, pixels_of(files[:count], tmp_path))
        found = client.ask("four_images", "image", as_bytes(files[:count]))
        close_to(found.as_numpy("logits"), wanted)


def test_bad_pictures_fail_alone_in_one_line(client: Client, files: list[bytes]) -> None:
    message = client.error("floats_images", "image", as_bytes([b"no picture"]))
    assert "cannot read the picture sent: its content is of no picture format" in message
    assert "\n" not in message and "cannot prepare" not in message
    message = client.error("floats_images", "image", as_bytes([files[0], files[3][:300]]))
    assert "cannot read the picture 2 of 2: " in message and "\n" not in message
    client.error("floats_images", "image", as_bytes([b""]))
    with ThreadPoolExecutor(8) as pool:  # beside good ones
        asked = [
            pool.submit(client.ask, "floats_images", "image", as_bytes([content]))
            for content in [*files, b"bad", *files]
        ]
    failed = [one.exception() for one in asked]
    assert [index for index, error in enumerate(failed) if error is not None] == [len(files)]


def test_shapes_that_do_not_fit_are_refused(client: Client) -> None:
    assert "[-1,3,32,32]" in client.error("floats", "image", np.zeros((1, 3, 8, 8), np.float32))
    many = np.zeros((33, 3, SIZE, SIZE), np.float32)
    assert "batch-size must be <= 32" in client.error("floats", "image", many)


def test_requests_are_batched(server: ServerProcess, client: Client, of_pixels: Path) -> None:
    """Single pictures of many clients: fewer executions than pictures, as the metrics say too."""
    stream = np.random.RandomState(3)
    pixels = stream.randint(0, 256, (64, SIZE, SIZE, 3)).astype(np.uint8)
    wanted = offline(of_pixels, pixels)

    def counted() -> tuple[int, int]:
        page = server.metrics()
        names = ("nv_inference_count", "nv_inference_exec_count")
        found = [re.search(rf'^{name}{{model="pixels",.*}} (\d+)', page, re.M) for name in names]
        return tuple(int(one[1]) for one in found if one)  # type: ignore[return-value]  # two

    pictures_before, executions_before = counted()
    before = server.statistics("pixels")["inference_count"]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda one: client.ask("pixels", "image", one[None]), pixels))
    close_to(np.concatenate([answer.as_numpy("logits") for answer in answers]), wanted)
    statistics = server.statistics("pixels")
    assert statistics["inference_count"] - before == 64
    pictures_after, executions_after = counted()
    assert pictures_after - pictures_before == 64
    assert executions_after - executions_before <= 32
    assert max(row["batch_size"] for row in statistics["batch_stats"]) >= 4


def test_warm_up_has_run(server: ServerProcess) -> None:
    sizes = {row["batch_size"] for row in server.statistics("floats")["batch_stats"]}
    assert {1, 32} <= sizes


def test_configurations_are_tritons(
    package: Callable[..., Any],
    artifact: Callable[[int | None], Artifact],
    tmp_path: Path,
    labels: Path,
) -> None:
    """Every file parses with Triton's protobuf; the values are looked at through it."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    def parsed(name: str) -> Any:
        text = (tmp_path / "models" / name / "config.pbtxt").read_text()
        return text_format.Parse(text, model_config_pb2.ModelConfig())

    package(name="a", accelerator=Accelerator.TENSORRT, max_batch=16, labels=labels, instances=2)
    for name in ("a", "a_preprocess", "a_postprocess", "a_images"):
        assert parsed(name).name == name
    config = parsed("a")
    assert (config.platform, config.backend) == ("onnxruntime_onnx", "onnxruntime")
    assert config.max_batch_size == 16
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 8, 16]
    assert config.dynamic_batching.max_queue_delay_microseconds == 1000
    (group,) = config.instance_group
    assert (group.kind, group.count) == (model_config_pb2.ModelInstanceGroup.KIND_GPU, 2)
    assert config.version_policy.latest.num_versions == 1
    assert [one.batch_size for one in config.model_warmup] == [1, 16]
    assert list(config.model_warmup[0].inputs["image"].dims) == [3, 32, 32]
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert dict(accelerator.parameters) == {
        "precision_mode": "FP32",
        "trt_profile_min_shapes": "image:1x3x32x32",
        "trt_profile_opt_shapes": "image:16x3x32x32",
        "trt_profile_max_shapes": "image:16x3x32x32",
    }
    assert config.output[0].label_filename == "labels.txt"
    steps = parsed("a_images").ensemble_scheduling.step
    assert [step.model_name for step in steps] == ["a_preprocess", "a", "a_postprocess"]
    package(name="b", accelerator=Accelerator.OPENVINO)
    (accelerator,) = parsed("b").optimization.execution_accelerators.cpu_execution_accelerator
    assert accelerator.name == "openvino"
    assert parsed("b").instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_CPU
    package(name="c", artifact=artifact(1).path)
    assert not parsed("c").HasField("dynamic_batching")


def test_backends_that_this_server_lacks(
    package: Callable[..., Any],
    workspace: Workspace,
    artifact: Callable[[int | None], Artifact],
    tmp_path: Path,
) -> None:
    """The server gets as far as the backend, and misses nothing else."""
    names = ["onnx"]
    package(name="onnx")
    if is_installed("tensorrt_rtx"):
        from t2t_deploy.commands import build_engine

        engine = build_engine(artifact(None).path, sm="portable", workspace=workspace)
        made = package(name="plan", artifact=engine.path)
        assert "Triton's tensorrt backend loads engines of TensorRT alone" in made.notes[0]
        names.append("plan")
        assert made.service.signature.image.shape == (None, 3, 32, 32)
        assert made.service.batching.preferred == (32,)
    with ServerProcess(tmp_path / "models", tmp_path / "log", ready=False) as server:
        states = server.model_states()
    missing = {"onnx": "onnxruntime", "plan": "tensorrt"}
    for name in names:
        backend = missing[name]
        assert states[name]["state"] == "UNAVAILABLE"
        wanted = f"unable to find backend library for backend '{backend}'"
        assert wanted in states[name]["reason"]
        for step in ("preprocess", "postprocess"):
            assert states[f"{name}_{step}"]["state"] == "READY"
    log = (tmp_path / "log").read_text()
    assert "Poll failed" not in log and "failed to parse" not in log


def test_a_server_that_cannot_load_says_why(package: Callable[..., Any], tmp_path: Path) -> None:
    made = package(name="broken", format=ServingFormat.PYTHON)
    (made.folders[0] / "1" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ServerError, match=r"broken: .*InvalidProtobuf"):
        ServerProcess(tmp_path / "models", tmp_path / "log")


def test_the_note_of_each_folder(models: Path) -> None:
    for folder in (models / "models").iterdir():
        assert json.loads((folder / "t2t-deploy.json").read_text())["format"] == "python"
