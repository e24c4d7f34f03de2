"""What one would use instead on an x86 CPU, timed beside our artifacts, with the error of each.

Each peer is made of the same weights once and kept in --folder: eager PyTorch and torch.compile,
plain exports, and the 8-bit graphs of nncf, ONNX Runtime and torchao, calibrated on crops of
photographs. Then all are timed in a process each, in interleaved rounds, as `t2t-deploy bench`
does; errors are of the very sessions that are timed, on crops of photographs that nothing was
calibrated on.

    make bench-peers ARGS="--variant 7 --batch 1 --batch 8 OUR_FILE.onnx ..."
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import peers as peers_module
from peers import EAGER, HELD_OUT, LOGITS, PEERS, PICTURES, Peer, Work, made

from t2t_deploy._child import ChildError
from t2t_deploy._codec import to_plain
from t2t_deploy._files import file_sha256, locked_folder, write_text
from t2t_deploy._optional import installed_versions
from t2t_deploy._progress import silent
from t2t_deploy.bench import (
    DEFAULT_ROUND_SECONDS,
    MIN_ROUNDS,
    BenchCase,
    BenchStatus,
    CaseResult,
    Environment,
    Speedup,
    run_bench,
    speedup_between,
)
from t2t_deploy.errors import DeployError, UsageError
from t2t_deploy.runtime import BACKENDS, SessionRequest, backend_for, why_not_in, why_not_runnable
from t2t_deploy.types import Precision, Target, relative_errors
from t2t_deploy.verify import float64_logits

OURS = "ours: "
_MODEL = "the reference"
_RUNTIMES = ("onnxruntime", "openvino")
_REASON_CHARS = 200


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table; None where nothing was measured, with the reason.

    vs_eager: times as fast, by the rounds; vs_peer: of ours, against the fastest peer whose logits
    are finite. error_mean, error_worst: relative L2 error of a picture's logits against float64,
    over the held-out crops, of which not_finite have logits that are not: then there is no error.
    """

    name: str
    batch: int
    threads: int
    versions: Mapping[str, str]
    status: BenchStatus = BenchStatus.NOT_RUN
    reason: str | None = None
    p50_ms: float | None = None
    vs_eager: Speedup | None = None
    vs_peer: Speedup | None = None
    images_per_s: float | None = None
    error_mean: float | None = None
    error_worst: float | None = None
    not_finite: int = 0
    unstable: bool = False
    rounds_ms: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Bench:
    """What is made of, the reference's logits of the held-out crops, and how long to time.

    typical: as of `relative_errors`.
    """

    work: Work
    expected: np.ndarray
    typical: float
    rounds: int
    round_seconds: float

    def run(
        self, peers: Sequence[Peer], ours: Sequence[Path], threads: int
    ) -> tuple[Environment, list[Row]]:
        """Time peers and artifacts side by side. Raises DeployError for a file that is none."""
        timed = self.work.folder.absolute() / f"timed-{self.work.batch}-{threads}"
        rows: dict[str, Row] = {}
        cases: list[BenchCase] = []
        same = Counter(path.name for path in ours)
        # before peers are made, which takes minutes
        files = [
            (f"{OURS}{path.name if same[path.name] == 1 else path}", _RUNTIMES, self._ours(path))
            for path in ours
        ]
        found = [(peer.name, peer.packages, self._peer(peer)) for peer in peers] + files
        for name, packages, opened in found:
            row = Row(name, self.work.batch, threads, installed_versions(*packages))
            if isinstance(opened, SessionRequest):
                folder = timed / re.sub(r"[^\w.]+", "-", name)
                folder.mkdir(parents=True, exist_ok=True)
                (folder / LOGITS).unlink(missing_ok=True)
                request = dataclasses.replace(opened, threads=threads, cache=folder)
                kind = (request.precision or Precision.FP32).value
                cases.append(BenchCase(request, name, kind, self.work.batch, _MODEL))
            else:
                status, reason = opened
                row = dataclasses.replace(row, status=status, reason=reason)
            rows[name] = row
        report = run_bench(
            cases,
            rounds=self.rounds,
            round_seconds=self.round_seconds,
            stage=_tell,
            worker_command=(sys.executable, peers_module.__file__, "time"),
        )
        for case, result in zip(cases, report.results, strict=True):
            name = str(case.artifact)
            rows[name] = self._measured(case, result, rows[name])
        return report.environment, with_speedup_vs_peer(list(rows.values()), report.results)

    def _peer(self, peer: Peer) -> SessionRequest | tuple[BenchStatus, str]:
        """How a peer is opened, once it is made; else its status and why."""
        absent = set(peer.packages) - installed_versions(*peer.packages).keys()
        if absent:
            return BenchStatus.NOT_RUN, f"{', '.join(sorted(absent))} not installed"
        if peer.runtime == "openvino-ir" and (reason := why_not_in("openvino", peer.precision)):
            return BenchStatus.NOT_RUN, reason
        if peer.runtime in BACKENDS and (reason := why_not_runnable(peer.runtime)):
            return BenchStatus.NOT_RUN, reason
        path = self.work.weights
        try:
            if peer.recipe is not None:
                work = self.work
                if peer.recipe not in ("plain", "pt2e"):
                    work = dataclasses.replace(work, plain=made("plain", work, _tell))
                path = made(peer.recipe, work, _tell)
        except ChildError as err:
            return BenchStatus.FAILED, str(err)
        config, precision = self.work.config, peer.precision
        return SessionRequest(peer.runtime, path, config=config, precision=precision)

    def _ours(self, path: Path) -> SessionRequest | tuple[BenchStatus, str]:
        """How an artifact is opened. Raises DeployError for another file, or other weights."""
        from t2t_deploy.commands._artifacts import session_request, why_not_run
        from t2t_deploy.workspace import Workspace

        workspace = Workspace(path.parent)
        artifact = workspace.open(path)
        manifest = artifact.require_manifest()
        if manifest.weights.get("sha256") != self.work.weights.stem:
            raise UsageError(f"{path} is of other weights than its peers would be; give its own")
        backend = backend_for(Target(manifest.target))
        if not BACKENDS[backend].on_cpu:
            raise UsageError(f"{path} is for {manifest.target}; give files for a CPU")
        if manifest.batch not in (None, self.work.batch):
            return BenchStatus.NOT_RUN, f"its batch is fixed to {manifest.batch}"
        reason = why_not_run(artifact, backend)
        if reason is not None:
            return BenchStatus.NOT_RUN, reason
        return session_request(workspace, artifact, backend, None, None)

    def _measured(self, case: BenchCase, result: CaseResult, row: Row) -> Row:
        """A row with its figures, and the error of the session that was timed."""
        assert case.request.cache is not None
        logits = case.request.cache / LOGITS
        errors = np.array([])
        if result.latency_ms is not None and logits.is_file():
            errors = relative_errors(np.load(logits), self.expected, self.typical)
        finite = errors.size and np.isfinite(errors).all()
        return dataclasses.replace(
            row,
            status=result.status,
            reason=None if result.reason is None else result.reason[:_REASON_CHARS],
            p50_ms=None if result.latency_ms is None else result.latency_ms.p50,
            vs_eager=result.speedup_vs_eager,
            images_per_s=result.images_per_s,
            error_mean=float(errors.mean()) if finite else None,
            error_worst=float(errors.max()) if finite else None,
            not_finite=int(np.isinf(errors).sum()),
            unstable=result.unstable,
            rounds_ms=tuple(result.round_medians_ms().tolist()),
        )


def with_speedup_vs_peer(rows: list[Row], results: Sequence[CaseResult]) -> list[Row]:
    """Ours with their speed against the fastest peer whose logits are finite."""
    found = {result.artifact: result for result in results}
    peers = [row for row in rows if not row.name.startswith(OURS) and row.error_worst is not None]
    if not peers:
        return rows
    base = found[min(peers, key=lambda row: row.p50_ms or math.inf).name]
    return [
        dataclasses.replace(row, vs_peer=speedup_between(base, found[row.name]))
        if row.name.startswith(OURS) and row.p50_ms is not None
        else row
        for row in rows
    ]


def table(rows: Sequence[Row]) -> str:
    """Rows of one batch and number of threads, in Markdown."""
    names = ("", "p50 ms", "times as fast as eager", "images/s", "error, mean", "worst")
    lines = [
        f"batch {rows[0].batch}, threads {rows[0].threads}:\n",
        f"| {' | '.join((*names, 'as the fastest peer', 'note'))} |",
        "|---" * (len(names) + 2) + "|",
    ]
    for row in rows:
        lines.append(f"| {' | '.join((row.name, *_cells(row)))} |")
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    words = {BenchStatus.FAILED: "failed: ", BenchStatus.NOT_RUN: "not run: ", BenchStatus.OK: ""}
    notes = [words[row.status] + (row.reason or "")]
    notes += [f"logits of {row.not_finite} pictures are not finite"] if row.not_finite else []
    notes += ["unstable"] if row.unstable else []
    errors = (row.error_mean, row.error_worst)
    return (
        _cell(row.p50_ms, ".2f"),
        _cell(row.vs_eager),
        _cell(row.images_per_s, ".1f"),
        *("nan" if row.not_finite else _cell(error, ".2g") for error in errors),
        _cell(row.vs_peer),
        "; ".join(filter(None, notes)).replace("|", "/"),
    )


def _cell(value: object, form: str = "") -> str:
    return "-" if value is None else format(value, form) if form else str(value)


def _tell(text: str) -> None:
    click.echo(text, err=True)


def work_of(folder: Path, **options: Any) -> Work:
    """The model that options name, its weights and the crops of photographs written to a folder."""
    import natural

    from t2t_deploy.commands._export import GraphForm, load_model
    from t2t_deploy.images import preprocess
    from t2t_deploy.model import save_weights

    loaded = load_model(GraphForm(), options, silent)
    channels, height, width = loaded.config.input_shape
    if channels != 3:
        raise UsageError(f"the model takes {channels} channels; the photographs here are of 3")
    unnamed = folder / "weights.safetensors"
    save_weights(loaded.state_dict, unnamed)
    sha256 = file_sha256(unnamed)
    folder = folder / sha256[:12]
    folder.mkdir(exist_ok=True)
    weights = unnamed.rename(folder / f"{sha256}.safetensors")
    for (name, count), photographs in zip(
        PICTURES.items(), (natural.CALIBRATION, natural.TEST), strict=True
    ):
        crops = natural.natural_crops(count, seed=count, names=photographs)
        np.save(folder / name, np.stack([preprocess(crop, (height, width)) for crop in crops]))
    return Work(weights, loaded.config.to_dict(), folder)


@click.command(context_settings={"show_default": True})
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--variant", help="Seeded weights of this variant, such as 14.")
@click.option("--checkpoint", help="Weights of this file.")
@click.option("--config", help="Dimensions of another model, as `t2t-deploy export` takes them.")
@click.option("--batch", "batches", type=click.IntRange(1), multiple=True, default=(1,))
@click.option("--threads", type=click.IntRange(1), multiple=True, default=(2,))
@click.option("--rounds", type=click.IntRange(MIN_ROUNDS), default=9)
@click.option("--round-seconds", type=float, default=DEFAULT_ROUND_SECONDS)
@click.option("--peers", "words", multiple=True, help="Eager, and those with this in their name.")
@click.option("--folder", type=click.Path(path_type=Path), default="build/peers")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
def main(
    files: Sequence[Path],
    batches: Sequence[int],
    threads: Sequence[int],
    rounds: int,
    round_seconds: float,
    words: Sequence[str],
    folder: Path,
    json_file: Path | None,
    **model: str | None,
) -> None:
    """Time FILES, artifacts of this model for a CPU, beside what one would use instead.

    --batch, --threads and --peers may be given several times. What was made stays in --folder: a
    second run only times.
    """
    peers = [p for p in PEERS if p.name == EAGER or not words or any(w in p.name for w in words)]
    runs: list[tuple[Environment, list[Row]]] = []
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked_folder(folder):  # two at a time would spoil each other's files and figures
            work = work_of(folder, **model)
            pictures = np.load(work.folder / HELD_OUT)
            expected = float64_logits(work.weights, work.config, pictures)
            for batch, count in itertools.product(batches, threads):
                own = dataclasses.replace(work, batch=batch)
                runs.append(Bench(own, *expected, rounds, round_seconds).run(peers, files, count))
                click.echo(f"{table(runs[-1][1])}\n")
    except DeployError as err:
        raise click.ClickException(str(err)) from err
    versions = {name: text for row in runs[0][1] for name, text in row.versions.items()}
    shown = ", ".join(f"{name} {text}" for name, text in versions.items())
    click.echo(f"{runs[0][0].cpu_model}; {runs[0][0].date_utc}; {rounds} rounds; {shown}")
    if json_file is not None:
        values = [{"environment": environment, "rows": rows} for environment, rows in runs]
        write_text(json_file, json.dumps(to_plain({"runs": values}), indent=2))
    if any(rows[0].status is not BenchStatus.OK for _, rows in runs):
        raise click.ClickException(f"{EAGER} was not measured, and all is compared with it")


if __name__ == "__main__":
    main()
