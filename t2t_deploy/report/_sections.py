"""The parts of a page that are words: summary, comparison, environment, lineage, command."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from t2t_deploy.errors import counted
from t2t_deploy.report._document import BenchDocument, Case, batches_of, cases_of_batch
from t2t_deploy.report._markup import Child, Markup, element, join

if TYPE_CHECKING:
    from t2t_deploy.bench import CaseResult, Comparison, GpuRecord
    from t2t_deploy.workspace import Manifest

_HASH = 12
_BUSY = 0.5  # load average per usable core, before the bench, above which it is mentioned
_NONE = "–"


def summary(cases: Sequence[Case]) -> Markup:
    """The figures that people look for first."""
    batch = batches_of(cases)[0]
    here = cases_of_batch(cases, batch)
    fastest = min(here, key=lambda case: case.p50_ms)
    tiles = [_tile(f"{fastest.p50_ms:.2f}", "ms", f"lowest median latency, batch {batch}", fastest)]
    compared = [case for case in here if case.result.speedup_vs_eager is not None]
    if compared:
        best = max(compared, key=_ratio)
        speedup = best.result.speedup_vs_eager
        assert speedup is not None
        interval = f"{speedup.low:.2f} to {speedup.high:.2f}"
        tiles.append(
            _tile(f"{speedup.ratio:.2f}", "×", f"as fast as eager PyTorch ({interval})", best)
        )
    most = max(cases, key=lambda case: case.images_per_s)
    tiles.append(
        _tile(
            f"{most.images_per_s:,.1f}",
            "images/s",
            f"highest throughput, batch {most.result.batch}",
            most,
        )
    )
    sized = [case for case in here if case.result.peak_rss_bytes is not None]
    if sized:
        least = min(sized, key=lambda case: case.result.peak_rss_bytes or 0)
        peak = (least.result.peak_rss_bytes or 0) / 1e6
        tiles.append(_tile(f"{peak:.0f}", "MB", f"lowest peak memory, batch {batch}", least))
    return element("div", tiles, class_="tiles")


def warnings(document: BenchDocument, cases: Sequence[Case]) -> Markup | None:
    """What should be known before a figure is believed."""
    said: list[Child] = []
    unstable = [case for case in cases if case.result.unstable]
    if unstable:
        said.append(
            f"{len(unstable)} of {len(cases)} cases are unstable: their rounds differ by more than "
            "10 %, so these figures would not come back. Measure again on an idle machine."
        )
    cold = [case for case in cases if case.result.warm_up and not case.result.warm_up.stable]
    if cold:
        said.append(f"{len(cold)} of {len(cases)} cases were not warm when they were measured.")
    found = document.report.environment
    if found.load_before is not None and found.load_before[0] > _BUSY * found.usable_cores:
        said.append(
            f"The machine was busy before it began: load average {found.load_before[0]:.2f} on "
            f"{found.usable_cores} cores."
        )
    drawn = {
        manifest.variant for manifest in document.artifacts.values() if manifest.random_weights
    }
    if drawn:
        said.append(
            f"The weights of {', '.join(sorted(drawn))} are seeded random numbers: speed and "
            "memory are those of trained ones, errors need not be."
        )
    if not said:
        return None
    return element("ul", (element("li", line) for line in said), class_="warnings")


def not_run_list(rows: Sequence[CaseResult]) -> Markup | None:
    """What was not measured and why, one entry for each reason."""
    reasons: dict[str, list[CaseResult]] = {}
    for row in rows:
        reasons.setdefault(str(row.reason), []).append(row)
    if not reasons:
        return None
    entries = []
    for reason, skipped in reasons.items():
        backends = ", ".join(dict.fromkeys(row.backend for row in skipped))
        files = list(dict.fromkeys(row.artifact for row in skipped if row.artifact))
        named = f"{len(files)} artifacts" if len(files) > 1 else "".join(files)
        which = element("span", f"({named}) ", class_="file") if named else None
        entries.append(element("li", element("b", backends), " ", which, reason))
    return element("ul", entries, class_="not-run")


def comparison_section(comparison: Comparison) -> Markup:
    """Verdict and ratio of each case against the older report."""
    rows = []
    for case in comparison.cases:
        ratio = case.ratio
        figures: Child = _NONE
        if ratio is not None:
            figures = f"{ratio.ratio:.3f} × ({ratio.low:.3f} to {ratio.high:.3f})"
        verdict = element("b", case.verdict.value, class_=case.verdict.value.replace(" ", "-"))
        name = f"{case.backend} {case.precision}, batch {case.batch}"
        rows.append(
            element(
                "tr",
                element("td", name, element("span", case.artifact or _NONE, class_="file")),
                element("td", verdict),
                element("td", figures, class_="number"),
                element("td", case.reason or ""),
            )
        )
    heads = (
        element("th", word, scope="col", class_="number" if "fast" in word else None)
        for word in ("case", "now", "as fast as then", "")
    )
    table = element(
        "table", element("thead", element("tr", heads)), element("tbody", rows), class_="compared"
    )
    notes = [element("li", note) for note in comparison.notes]
    return join(
        (
            element(
                "p",
                f"Against {comparison.old}, measured {comparison.date_utc} on the same machine "
                "with the same settings. The interval is a bootstrap over the rounds of both.",
            ),
            element("div", table, class_="scroll"),
            element("p", "Not the same:") if notes else None,
            element("ul", notes) if notes else None,
        )
    )


def environment_section(document: BenchDocument) -> Markup:
    """Machine, settings and versions."""
    found, settings = document.report.environment, document.report.settings
    threads = ", ".join("default" if n is None else str(n) for n in found.threads)
    pairs: list[tuple[str, Child]] = [
        ("Processor", found.cpu_model),
        ("Instructions", _list(found.cpu_flags)),
        ("Cores", f"{found.usable_cores} usable of {found.logical_cores} logical"),
        ("Threads", threads),
        ("Memory", f"{found.memory_bytes / 1e9:.1f} GB"),
        ("Governor", found.governor or "cannot be read"),
        ("Load average", f"{_loads(found.load_before)} before, {_loads(found.load_after)} after"),
        *((f"GPU {gpu.index}", _gpu(gpu)) for gpu in found.gpus),
        ("System", found.platform),
        ("Date", found.date_utc),
    ]
    if settings is not None:
        pairs += [
            (
                "Rounds",
                f"{settings.rounds}, interleaved, about {settings.round_seconds:.2g} s each",
            ),
            ("Warm-up", f"until stable, at most {settings.warm_up_limit_s:.2g} s"),
            ("Seed", str(settings.seed)),
        ]
    versions = [("Python", found.python), *found.versions.items()]
    return join(
        (
            _definitions(pairs),
            element("h3", "Versions"),
            _definitions(versions),
        )
    )


def _gpu(gpu: GpuRecord) -> str:
    """A GPU in one line; what held its clocks down comes last."""
    power = "" if gpu.power_w is None else f", up to {gpu.power_w:.0f} W"
    held = f"; held down by {', '.join(gpu.throttled)}" if gpu.throttled else "; not held down"
    return (
        f"{gpu.name}, driver {gpu.driver}, {gpu.sm_mhz[0]} to {gpu.sm_mhz[1]} of "
        f"{gpu.max_sm_mhz} MHz, memory {gpu.memory_mhz[0]} to {gpu.memory_mhz[1]} MHz, up to "
        f"{gpu.temperature_c} °C{power}{held}"
    )


def lineage_section(document: BenchDocument) -> Markup:
    """Each artifact with what it was made from, in the order of the making."""
    if not document.artifacts:
        return element("p", "No artifact that was measured has a manifest.")
    return join(
        _artifact(name, manifest)
        for name, manifest in sorted(
            document.artifacts.items(), key=lambda item: (item[1].sequence, item[0])
        )
    )


def command_section(command: str) -> Markup:
    """The command line, and a button that takes it along."""
    button = element("button", "Copy", type="button", id="copy", hidden=True)
    return element(
        "div", element("pre", element("code", command, id="command")), button, class_="command"
    )


def _artifact(name: str, manifest: Manifest) -> Markup:
    steps = [_weights(manifest.weights)]
    steps += [
        element(
            "li",
            element("b", str(parent.get("kind"))),
            " ",
            element("span", str(parent.get("file", "")), class_="file"),
            " ",
            _hash(parent),
        )
        for parent in manifest.parents
        if parent.get("kind") != "weights"
    ]
    steps.append(
        element(
            "li",
            element("b", manifest.kind),
            " ",
            element("span", name, class_="file"),
            " ",
            _hash({"sha256": manifest.sha256}),
        )
    )
    batch = "dynamic" if manifest.batch is None else str(manifest.batch)
    pairs: list[tuple[str, Child]] = [
        (
            "Model",
            f"{manifest.variant}, {manifest.config.get('image_size')} px, "
            f"{manifest.config.get('num_classes')} classes",
        ),
        (
            "Form",
            f"{manifest.precision.value}, target {manifest.target}, batch {batch}"
            + ("" if manifest.opset is None else f", opset {manifest.opset}"),
        ),
        ("Size", f"{manifest.size_bytes / 1e6:.1f} MB"),
        ("Checked", _verdict(manifest.verification)),
        ("Made", manifest.created),
        ("Tools", ", ".join(f"{tool} {version}" for tool, version in manifest.tools.items())),
    ]
    if manifest.strategies:
        pairs.insert(2, ("Rewrites", _strategies(manifest.strategies)))
    return element(
        "article",
        element("h3", name, class_="file"),
        element("ol", steps, class_="chain"),
        _definitions(pairs),
        class_="artifact",
    )


def _weights(weights: Mapping[str, object]) -> Markup:
    if not weights:
        return element("li", element("b", "weights"), " unknown: a file that was not exported here")
    source = weights.get("source")
    words = "unknown source"
    if isinstance(source, Mapping):
        known = dict(source)
        kind = known.pop("kind", "")
        if kind == "random":
            words = f"seeded random numbers, seed {known.get('seed')}"
        else:
            sha256 = str(known.pop("sha256", ""))[:_HASH]
            words = f"{kind} " + ", ".join([*(str(v) for v in known.values()), sha256])
    return element("li", element("b", "weights"), f" {words} ", _hash(weights))


def _verdict(verification: Mapping[str, object] | None) -> str:
    if verification is None:
        return "not checked"
    status, error, limit = (verification.get(key) for key in ("status", "rel_l2", "tolerance"))
    if not isinstance(error, float):
        return f"{str(status).replace('_', ' ')}: {verification.get('reason')}"
    pictures = verification.get("pictures")
    count = f" on {counted(len(pictures), 'picture')}" if isinstance(pictures, Mapping) else ""
    return f"{status}: relative L2 error {error:.2e} of {limit} allowed{count}"


def _strategies(strategies: Mapping[str, object]) -> str:
    words = []
    for key, value in strategies.items():
        name = key.replace("_", " ")
        if isinstance(value, bool):
            words += [name] if value else []
        else:
            several = value if isinstance(value, (list, tuple)) else (value,)
            words.append(" ".join((name, *(str(one) for one in several))))
    return ", ".join(words)


def _hash(values: Mapping[str, object]) -> Markup:
    sha256 = str(values.get("sha256", ""))
    return element("code", sha256[:_HASH], title=f"SHA-256 {sha256}")


def _definitions(pairs: Iterable[tuple[str, Child]]) -> Markup:
    rows = (element("div", element("dt", name), element("dd", value)) for name, value in pairs)
    return element("dl", rows)


def _tile(value: str, unit: str, words: str, case: Case) -> Markup:
    return element(
        "div",
        element("p", value, element("span", f" {unit}", class_="unit"), class_="big"),
        element("p", words),
        element("p", element("span", f"#{case.number}", class_="swatch"), f" {case.name}"),
        class_=f"tile {case.colour}",
        data_series=case.number,
    )


def _list(values: Sequence[str] | None) -> str:
    if values is None:
        return "cannot be read"
    return ", ".join(values) or "none of those looked for"


def _loads(values: Sequence[float] | None) -> str:
    return "unknown" if values is None else " ".join(f"{value:.2f}" for value in values)


def _ratio(case: Case) -> float:
    assert case.result.speedup_vs_eager is not None
    return case.result.speedup_vs_eager.ratio
