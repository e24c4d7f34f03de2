"""The whole page in one file: nothing is fetched, and nothing but its own script can run."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources

from t2t_deploy import __version__
from t2t_deploy.report._document import BenchDocument, batches_of, measured_cases
from t2t_deploy.report._latency_chart import latency_chart
from t2t_deploy.report._markup import Child, Markup, element, join
from t2t_deploy.report._sections import (
    command_section,
    comparison_section,
    environment_section,
    lineage_section,
    not_run_list,
    summary,
    warnings,
)
from t2t_deploy.report._small_charts import memory_chart
from t2t_deploy.report._table import results_table
from t2t_deploy.report._throughput_chart import throughput_chart
from t2t_deploy.report._tradeoff_chart import tradeoff_chart

_TITLE = "T2T-ViT benchmark"


def bench_page(document: BenchDocument) -> str:
    """A page that shows a bench, with styles, script and pictures inside.

    Whatever comes from files or the command line is text in it, never markup. A policy lets the
    page run and style itself by the hash of what is here, and forbids everything else.
    """
    style, script = (_resource(name) for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}"/>'),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name_="color-scheme", content="light dark"),
        element("meta", name_="generator", content=f"t2t-deploy {__version__}"),
        element("title", _TITLE),
        element("link", rel="icon", href="data:,"),
        Markup(f"<style>{style}</style>"),
    )
    body = element("body", element("main", *_parts(document)), Markup(f"<script>{script}</script>"))
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _parts(document: BenchDocument) -> list[Markup | None]:
    report = document.report
    cases = measured_cases(document)
    failed = [row for row in report.results if row.status.value == "failed"]
    not_run = not_run_list([row for row in report.results if row.status.value == "not_run"])
    parts: list[Markup | None] = [
        element(
            "header",
            element("h1", _TITLE),
            element("p", _lead(document), class_="lead"),
        ),
        warnings(document, cases),
        summary(cases) if cases else None,
        _section("Results", results_table(cases, failed)),
    ]
    if cases:
        batches = batches_of(cases)
        kinds: list[list[Child]] = [[throughput_chart(cases)]]
        for chart in (latency_chart, tradeoff_chart, memory_chart):
            kinds.append([chart(cases, batch, first=batch == batches[0]) for batch in batches])
        # side by side: the kinds, or of each kind the batches
        rows = kinds if len(batches) > 1 else [[one for kind in kinds for one in kind]]
        parts.append(_section("Charts", *(element("div", row, class_="charts") for row in rows)))
    if document.comparison is not None:
        parts.append(_section("Then and now", comparison_section(document.comparison)))
    if not_run is not None:
        parts.append(_section("Not run", not_run))
    return [
        *parts,
        _section("Lineage", lineage_section(document)),
        _section("Environment", environment_section(document)),
        _section("Measure it again", command_section(document.command)),
        element("footer", element("p", f"Written by t2t-deploy {__version__}.")),
    ]


def _lead(document: BenchDocument) -> str:
    """What was measured, on what, and when."""
    found = document.report.environment
    models = dict.fromkeys(
        f"{manifest.variant} at {manifest.config.get('image_size')} px"
        for manifest in document.artifacts.values()
    )
    threads = ", ".join("default" if n is None else str(n) for n in found.threads)
    words = [*models, found.cpu_model, f"threads {threads}", found.date_utc[:16].replace("T", " ")]
    return " · ".join(words) + " UTC"


def _section(title: str, *children: Child) -> Markup:
    return element("section", element("h2", title), join(children))


def _resource(name: str) -> str:
    return resources.files("t2t_deploy.report").joinpath(name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    digest = hashlib.sha256(source.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
