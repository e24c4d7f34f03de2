"""Deploy form for the CPU against eager PyTorch and against exporting the reference as it is.

    python tools/bench_plain_export.py 14 7

For each variant, seeded weights, float32, batch 1, ONNX Runtime on the CPU: the file of
`t2t-deploy export --target cpu`, and what `torch.onnx.export` writes of the reference, by its
TorchScript exporter and by its default one. One process each, interleaved rounds; ratios are
medians over rounds, with 95 % intervals.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import warnings
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from t2t_deploy.bench import BenchCase, CaseResult, run_bench
from t2t_deploy.bench._statistics import round_medians, speedup_of
from t2t_deploy.model import VARIANTS, random_state_dict, reference_from_state_dict
from t2t_deploy.pipeline import ExportRequest, Workspace, export_model
from t2t_deploy.runtime import SessionRequest, available_threads
from t2t_deploy.types import Target

OPSET = 18  # the default exporter's own


def plain_export(variant: str, folder: Path, *, dynamo: bool) -> Path:
    """The reference, of which nothing is rewritten, at batch 1."""
    config = VARIANTS[variant].config
    reference = reference_from_state_dict(random_state_dict(config), config).eval()
    picture = torch.zeros(1, 3, config.image_size, config.image_size)
    path = folder / f"plain-{'default' if dynamo else 'torchscript'}.onnx"
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # about the exporters' own future
        torch.onnx.export(
            reference, (picture,), path, input_names=["image"], dynamo=dynamo, opset_version=OPSET
        )
    return path


def cases_of(variant: str, folder: Path, threads: int) -> list[BenchCase]:
    """Eager first, the deploy form second, then the plain exports."""
    workspace = Workspace(folder / "artifacts")
    artifact = export_model(workspace, ExportRequest(variant=variant, target=Target.CPU))
    manifest = artifact.known()
    eager = SessionRequest(
        "eager", workspace.weights(manifest), threads=threads, config=manifest.config
    )
    files = [artifact.path, *(plain_export(variant, folder, dynamo=d) for d in (False, True))]
    return [
        BenchCase(eager, None, "fp32", 1, variant),
        *(
            BenchCase(SessionRequest("ort-cpu", path, threads=threads), path.name, "fp32", 1)
            for path in files
        ),
    ]


def ratio(base: CaseResult, other: CaseResult) -> str:
    """How many times as fast as the base the other is, over the rounds they share."""
    medians = [round_medians([r.samples_ms for r in result.rounds]) for result in (base, other)]
    found = speedup_of(*medians, seed=0)
    return f"{found.ratio:.2f} [{found.low:.2f}, {found.high:.2f}]"


def main() -> None:
    """Print one table for each variant named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variants", nargs="+", choices=VARIANTS, metavar="VARIANT")
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    for variant in options.variants:
        with tempfile.TemporaryDirectory() as name:
            cases = cases_of(variant, Path(name), options.threads)
            results = run_bench(cases, rounds=options.rounds).results
        for result in results:
            if result.reason is not None:
                raise SystemExit(f"{result.backend} {result.artifact}: {result.reason}")
        table = Table(title=f"T2T-ViT-{variant}, float32, batch 1, {options.threads} threads")
        for column in ("", "p50 ms", "eager / it", "it / deploy form"):
            table.add_column(column, justify="left" if not column else "right")
        for result in results:
            assert result.latency_ms is not None
            label = result.artifact or "eager PyTorch"
            table.add_row(
                label,
                f"{result.latency_ms.p50:.2f}",
                ratio(results[0], result),
                ratio(result, results[1]),
            )
        Console(width=120).print(table)


if __name__ == "__main__":
    main()
