"""The page in one file: it loads nothing, and only its own script can run."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib import resources

from markupsafe import Markup

from t2t_deploy import __version__
from t2t_deploy.errors import counted
from t2t_deploy.report._charts import (
    VERIFIED,
    latency_chart,
    memory_chart,
    rounds_sparkline,
    throughput_chart,
    tradeoff_chart,
)
from t2t_deploy.report._document import (
    BenchDocument,
    Case,
    TuneSummary,
    batches_of,
    cases_of_batch,
    measured_cases,
)
from t2t_deploy.report._drawing import Chart

_BUSY = 0.5  # load average per usable core, before the bench, above which it is mentioned
_Tile = tuple[str, str, str, Case]


def bench_page(document: BenchDocument) -> str:
    """A page that shows a bench, with styles, script and drawings inside.

    All from files or the command line is text in it, never markup. A policy allows its style and
    its script by their hashes, and forbids everything else.
    """
    import jinja2

    style, script = _resource("page.css"), _resource("page.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    cases = measured_cases(document)
    artifacts = document.artifacts.items()
    page = environment.from_string(_joined(_resource("page.html.j2"))).render(
        version=__version__,
        policy=Markup(policy),
        style=Markup(style),
        script=Markup(script),
        document=document,
        models=dict.fromkeys(f"{m.variant} at {m.size_text} px" for _, m in artifacts),
        artifacts=sorted(artifacts, key=lambda item: (item[1].sequence, item[0])),
        warnings=_warnings(document, cases),
        cases=cases,
        tiles=_tiles(cases) if cases else [],
        charts=_charts(cases, document.tuning) if cases else [],
        failed=[row for row in document.report.results if row.status.value == "failed"],
        sparkline=rounds_sparkline,
        counted=counted,
    )
    return f"<!DOCTYPE html>\n{page}\n"


def _tiles(cases: Sequence[Case]) -> list[_Tile]:
    """The main figures: value, unit, words, case."""
    batch = batches_of(cases)[0]
    here = cases_of_batch(cases, batch)
    fastest = min(here, key=lambda case: case.latency.p50)
    tiles = [(f"{fastest.latency.p50:.2f}", "ms", f"lowest median latency, batch {batch}", fastest)]
    compared = [(one.result.speedup_vs_eager, one) for one in here if one.result.speedup_vs_eager]
    if compared:
        speedup, best = max(compared, key=lambda pair: pair[0].ratio)
        words = f"as fast as eager PyTorch ({speedup.low:.2f} to {speedup.high:.2f})"
        tiles.append((f"{speedup.ratio:.2f}", "×", words, best))
    most = max(cases, key=lambda case: case.images_per_s)
    words = f"highest throughput, batch {most.result.batch}"
    tiles.append((f"{most.images_per_s:,.1f}", "images/s", words, most))
    sized = [case for case in here if case.peak_mb]
    if sized:
        least = min(sized, key=lambda case: case.peak_mb)
        tiles.append((f"{least.peak_mb:.0f}", "MB", f"lowest peak memory, batch {batch}", least))
    return tiles


def _warnings(document: BenchDocument, cases: Sequence[Case]) -> list[str]:
    """Conditions that make figures less reliable."""
    warnings = []
    if document.report.cut_short is not None:
        warnings.append(f"The bench was cut short: {document.report.cut_short}.")
    unstable = [case for case in cases if case.result.unstable]
    if unstable:
        warnings.append(
            f"{len(unstable)} of {len(cases)} cases are unstable: their rounds differ by more than "
            "10 %, so these figures would not come back. Measure again on an idle machine."
        )
    stopped = [case for case in cases if case.result.stops]
    if stopped:
        warnings.append(
            f"{len(stopped)} of {len(cases)} cases were stopped for long, by a quota of processor "
            "time or by other work: the mean and images/s have what it cost, the median has not."
        )
    cold = [case for case in cases if case.result.warm_up and not case.result.warm_up.stable]
    if cold:
        warnings.append(f"{len(cold)} of {len(cases)} cases were not warm when they were measured.")
    env = document.report.environment
    if env.load_before is not None and env.load_before[0] > _BUSY * env.usable_cores:
        warnings.append(
            f"The machine was busy before it began: load average {env.load_before[0]:.2f} on "
            f"{env.usable_cores} cores."
        )
    random = {
        manifest.variant for manifest in document.artifacts.values() if manifest.random_weights
    }
    if random:
        warnings.append(
            f"The weights of {', '.join(sorted(random))} are seeded random numbers: speed and "
            "memory are those of trained ones, errors need not be."
        )
    return warnings


def _charts(cases: Sequence[Case], tuning: TuneSummary | None = None) -> list[list[Chart]]:
    """Rows of charts: all kinds of one batch, or all batches of one kind."""
    batches = batches_of(cases)
    kinds = [[throughput_chart(cases)]]
    tradeoff = partial(tradeoff_chart, error=VERIFIED if tuning is None else tuning.error)
    for draw in (latency_chart, tradeoff, memory_chart):
        charts = [one for batch in batches if (one := draw(cases, batch)) is not None]
        kinds.append(charts[:1] + [replace(one, caption=None) for one in charts[1:]])
    return kinds if len(batches) > 1 else [[one for kind in kinds for one in kind]]


def _joined(template: str) -> str:
    """A template on one line: breaks beside tags and statements vanish, others become a space."""
    tags = re.sub(r"\s*\n\s*(?=<|{[%#])|((?<=>)|(?<=[%#]}))\s*\n\s*", "", template)
    return re.sub(r"\s*\n\s*", " ", tags)


def _resource(name: str) -> str:
    return resources.files("t2t_deploy.report").joinpath(name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    digest = hashlib.sha256(source.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
