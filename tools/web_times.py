"""One picture in onnxruntime-web in headless Chromium, and in ONNX Runtime: one thread each.

Our files are timed beside plain exports of the same weights by both of torch's exporters, and what
ONNX Runtime's own quantiser makes of them. Each file has a process of its own in each round, and
rounds are interleaved. Figures are medians; the last column is the median of the rounds' ratios of
wasm times, with the smallest and the largest, to the fastest plain file of the same precision.

    python tools/web_times.py --variant 7
"""

from __future__ import annotations

import dataclasses
import functools
import http.server
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
from bench_peers import work_of
from peers import HELD_OUT, Work, made

from t2t_deploy._child import ChildError
from t2t_deploy._processor import read_processor
from t2t_deploy.commands import export_onnx, quantize_onnx
from t2t_deploy.serving.web import read_runtime
from t2t_deploy.types import INPUT_NAME

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.report import chromium

PLAIN = {
    "plain export, default exporter": "plain",
    "plain export, TorchScript exporter": "plain-torchscript",
    "plain, quantize_static": "static",
    "plain, quantize_static, u8 x s8 per channel": "static-channels",
    "plain, quantize_dynamic": "dynamic",
}
RUNTIMES = ("wasm", "native")
_WARM_S, _TIMED_S, _LEAST = 1.0, 1.5, 5
_SCRIPT = """(async () => {
  const ort = await import("/ort.wasm.min.mjs");
  ort.env.wasm.numThreads = 1;
  const bytes = async (name) => (await fetch(name)).arrayBuffer();
  const session = await ort.InferenceSession.create(new Uint8Array(await bytes("/model")), {
    executionProviders: ["wasm"], logSeverityLevel: 4 });
  const picture = new ort.Tensor("float32", new Float32Array(await bytes("/picture")), SHAPE);
  const times = async (seconds) => {
    const found = [], end = performance.now() + 1000 * seconds;
    while (performance.now() < end || found.length < LEAST) {
      const begun = performance.now();
      await session.run({ [session.inputNames[0]]: picture });
      found.push(performance.now() - begun);
    }
    return found;
  };
  await times(WARM);
  return times(TIMED);
})()"""


def time_wasm(model: Path, picture: np.ndarray) -> list[float]:
    """Milliseconds of each run in a browser of its own."""
    program = chromium.find_chromium()
    if program is None:
        raise click.ClickException("no Chromium: install it (Debian: apt install chromium)")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in read_runtime(None).files.items():
            (folder / file).write_bytes(content)
        shutil.copy(model, folder / "model")
        picture.tofile(folder / "picture")
        (folder / "index.html").write_text('<!doctype html><link rel="icon" href="data:,">')
        handler = functools.partial(_Quiet, directory=name)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = chromium.Browser(program, folder / "profile")
        try:
            browser.open(f"http://127.0.0.1:{server.server_port}/")
            script = _SCRIPT.replace("SHAPE", str(list(picture.shape)))
            for word, value in (("WARM", _WARM_S), ("TIMED", _TIMED_S), ("LEAST", _LEAST)):
                script = script.replace(word, str(value))
            return [float(one) for one in browser.run(script)]
        finally:
            browser.close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def end_headers(self) -> None:
        """With these the browser's clock has 5 microseconds instead of 100."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def time_native(model: Path, picture: np.ndarray) -> list[float]:
    """Milliseconds of each run in ONNX Runtime."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds = {session.get_inputs()[0].name: picture}

    def times(seconds: float) -> list[float]:
        found: list[float] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(found) < _LEAST:
            begun = time.perf_counter()
            session.run(None, feeds)
            found.append(1e3 * (time.perf_counter() - begun))
        return found

    times(_WARM_S / 2)
    return times(_TIMED_S / 2)


def files(work: Work, source: Mapping[str, Any], folder: Path) -> Iterator[tuple[str, Path, bool]]:
    """Each file's name, the file, and whether it is of 8 bits; what cannot be made is said."""
    import onnx

    for name, recipe in PLAIN.items():
        try:
            found = made(recipe, work, _tell)
        except ChildError as err:
            _tell(f"{name}: {err}")
            continue
        # the default exporter loses an epsilon, without which some models give no numbers
        if work.plain is None or (recipe.startswith("plain") and not _gives_numbers(work)):
            work = dataclasses.replace(work, plain=found)
        one = folder / f"{recipe}.onnx"
        onnx.save(onnx.load(found), one)  # the weights of some lie beside them
        yield name, one, not recipe.startswith("plain")
    from natural import write_calibration_crops

    images = write_calibration_crops(folder / "crops", 64)
    workspace = folder / "artifacts"
    for target in ("portable", "cpu"):
        _tell(f"exporting for {target}")
        floating = export_onnx(**source, target=target, workspace=workspace)
        known: dict[str, Any] = {"workspace": workspace, "speed": False}
        yield f"ours: {target}, fp32", floating.path, False
        static = quantize_onnx(floating.path, images=images, **known)
        yield f"ours: {target}, int8", static.path, True
    dynamic = quantize_onnx(floating.path, mode="dynamic", **known)
    yield "ours: cpu, int8, ranges at run time", dynamic.path, True


def _gives_numbers(work: Work) -> bool:
    import onnxruntime as ort

    session = ort.InferenceSession(work.plain, providers=["CPUExecutionProvider"])
    return bool(np.isfinite(session.run(None, {INPUT_NAME: work.batches()[0]})[0]).all())


def measure(model: Path, runtime: str, picture: Path) -> float:
    """The median in milliseconds, in a process of its own."""
    command = [sys.executable, __file__, "time", runtime, str(model), str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(median(json.loads(done.stdout)))


def _tell(text: str) -> None:
    click.echo(text, err=True)


@click.command(context_settings={"show_default": True})
@click.option("--variant", help="Seeded weights of this variant, such as 7.")
@click.option("--checkpoint", help="Weights of this file.")
@click.option("--config", help="Dimensions of another model, as `t2t-deploy export` takes them.")
@click.option("--rounds", type=click.IntRange(1), default=7)
@click.option("--only", multiple=True, help="Files with this in their name; may be repeated.")
@click.option("--folder", type=click.Path(path_type=Path), default="build/web-times")
def main(rounds: int, only: Sequence[str], folder: Path, **model: str | None) -> None:
    """Time one picture of a model; what was made stays in --folder."""
    folder.mkdir(parents=True, exist_ok=True)
    work = work_of(folder, **model)
    picture = work.folder / "picture.npy"
    np.save(picture, np.load(work.folder / HELD_OUT)[:1])
    found = list(files(work, {k: v for k, v in model.items() if v}, work.folder))
    found = [one for one in found if not only or any(word in one[0] for word in only)]
    times: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds):
        for name, file, _ in found:
            for runtime in RUNTIMES:
                _tell(f"round {number + 1}: {name}, {runtime}")
                times.setdefault((name, runtime), []).append(measure(file, runtime, picture))
    click.echo("| | MB | wasm ms | native ms | wasm / native | wasm, of the plain file's |")
    click.echo("|---" * 6 + "|")
    for name, file, quantised in found:
        wasm, native = (np.array(times[name, runtime]) for runtime in RUNTIMES)
        plain = [n for n, _, other in found if n in PLAIN and other == quantised]
        of_plain = wasm / min((times[n, "wasm"] for n in plain), key=median, default=np.nan)
        click.echo(
            f"| {name} | {file.stat().st_size / 1e6:.1f} | {median(wasm):.1f} | "
            f"{median(native):.1f} | {median(wasm / native):.1f} | "
            f"{median(of_plain):.2f} [{min(of_plain):.2f}, {max(of_plain):.2f}] |"
        )
    import onnxruntime

    program = str(chromium.find_chromium())
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    day = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    click.echo(
        f"\n{read_processor().model}; {day}; {rounds} rounds; "
        f"onnxruntime-web {read_runtime(None).version}; {told.stdout.split(' built')[0].strip()}; "
        f"ONNX Runtime {onnxruntime.__version__}"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["time"]:
        runtime, model, picture = sys.argv[2], Path(sys.argv[3]), np.load(sys.argv[4])
        timer = time_wasm if runtime == "wasm" else time_native
        click.echo(json.dumps(timer(model, picture)))
    else:
        main()
