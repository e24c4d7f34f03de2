"""The page as a file: what it holds, and that nothing can get into it or out of it."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from html.parser import HTMLParser

import pytest

from t2t_deploy._limits import Limits, Throttling
from t2t_deploy.bench import BenchStatus, GpuRecord
from t2t_deploy.report import BenchDocument, bench_page
from t2t_deploy.report._page import _resource

from ..reports import HERE
from .conftest import HOSTILE, document_of, hostile, manifest_of, measured_row


class Read(HTMLParser):
    """Elements by name with their attributes, and the text of each section."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._hidden = 0
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._hidden += tag in ("style", "script")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("style", "script")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text += data + " "

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def read(document: BenchDocument) -> Read:
    return Read(bench_page(document))


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        (
            "document",
            ("fast.onnx", "t2t-deploy bench", "no device", "KeyError: [x]", "Some CPU", "old.json"),
        ),
        (
            "unlike",
            ("H100", "580", "power cap", "14 are", "5", "parent.onnx", "onnx", "torch was 2.12"),
        ),
    ],
)
def test_whatever_comes_from_files_is_text(
    request: pytest.FixtureRequest, name: str, texts: tuple[str, ...]
) -> None:
    document: BenchDocument = request.getfixturevalue(name)
    plain, changed = read(document), read(hostile(document))
    assert {tag for tag, _ in changed.elements} <= {tag for tag, _ in plain.elements}
    assert plain.count("script") == changed.count("script") == 1
    assert changed.count("img") == 0
    allowed = {name for _, attributes in plain.elements for name in attributes}
    assert {name for _, attributes in changed.elements for name in attributes} <= allowed
    assert not [name for name in allowed if name.startswith("on")]
    for text in texts:
        assert text in plain.text
        assert f"{HOSTILE}{text}" in changed.text, text
    if name == "unlike":
        assert f"{HOSTILE}not_run: {HOSTILE}no device".replace("_", " ") in changed.text


def test_a_variant_named_as_a_script_is_shown_by_that_name() -> None:
    known = {"a.onnx": manifest_of("a.onnx", variant="<script>")}
    page = read(document_of(measured_row(), artifacts=known))
    assert "<script>, 224 px, 1000 classes" in page.text
    assert page.count("script") == 1


def test_only_what_is_here_may_run_or_style(document: BenchDocument) -> None:
    page = bench_page(document)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    for name, tag in (("page.css", "style"), ("page.js", "script")):
        digest = hashlib.sha256(_resource(name).encode()).digest()
        assert f"{tag}-src 'sha256-{base64.b64encode(digest).decode()}'" in policy
        assert f"<{tag}>{_resource(name)}</{tag}>" in page
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    assert page.index("Content-Security-Policy") < page.index("<style>")


def test_nothing_is_fetched(document: BenchDocument) -> None:
    page = read(document)
    addresses = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "action", "srcset", "data", "poster")
    ]
    assert addresses == ["data:,"]
    assert not re.search(r"https?://|url\(|@import", bench_page(document))


def test_every_part_is_there(document: BenchDocument) -> None:
    page = read(document)
    parts = re.findall(r"<h2>([^<]*)</h2>", bench_page(document))
    assert parts == [
        *("Results", "Charts", "Then and now", "Not run", "Lineage", "Environment"),
        "Measure it again",
    ]
    titles = re.findall(r"<figure><h3>([^<]*)</h3>", bench_page(document))
    assert titles == [
        "Throughput against batch",
        *(f"Latency, batch {batch}" for batch in (1, 8)),
        *(f"Error against speed, batch {batch}" for batch in (1, 8)),
        *(f"Peak memory, batch {batch}" for batch in (1, 8)),
    ]
    assert page.count("svg") == 2 * len(titles) + 6
    assert "14 at 224 px · Some CPU · threads 2 · 2026-01-02 03:04 UTC" in page.text


@pytest.mark.parametrize(
    ("power_w", "throttled", "end"),
    [
        (290.5, ("power cap", "sync boost"), ", up to 290 W; held down by power cap, sync boost"),
        (None, (), "; not held down"),
    ],
)
def test_a_gpu_has_its_line(power_w: float | None, throttled: tuple[str, ...], end: str) -> None:
    gpu = GpuRecord(0, "H100", "580.1", (900, 1800), 2100, (5000, 5000), 83, power_w, throttled)
    page = bench_page(
        document_of(measured_row(), environment=dataclasses.replace(HERE, gpus=(gpu,)))
    )
    assert re.findall(r"<dt>GPU 0</dt><dd>(.*?)</dd>", page) == [
        "H100, driver 580.1, 900 to 1800 of 2100 MHz, memory 5000 to 5000 MHz, up to 83 °C" + end
    ]


def test_rows_of_the_table(document: BenchDocument) -> None:
    page = bench_page(document)
    body, failed = re.findall(r"<tbody[^>]*>(.*?)</tbody>", page)[:2]
    rows = [
        [re.sub(r"<svg.*?</svg>|<[^>]*>", "", cell) for cell in re.findall(r"<td.*?</td>", row)]
        for row in re.findall(r"<tr.*?</tr>", body)
    ]
    assert rows[:3] == [
        [
            *("#1eager14 224px reference", "fp32", "1", "100.00", "100.00", "101.60", "102.00"),
            *("10.0", "base", "reference", "400", "70.0", "240", "0%"),
        ],
        [
            *("#2ort-cpufast.onnx", "fp32", "1", "40.00", "40.00", "40.64", "40.80"),
            *("25.0", "2.50 2.40 to 2.62", "7.0e-07", "400", "70.0", "240", "0%"),
        ],
        [
            *("#3ort-cpuhalf.onnx", "fp16", "1", "60.00", "60.00", "60.96", "61.20"),
            *("16.7", "1.75 1.50 to 2.00", "9.7e-04", "400", "70.0", "–", "unstable, 23%not warm"),
        ],
    ]
    assert len(rows) == 6
    assert "openvino, fast.onnx, bf16, batch 1: " in failed and "KeyError: [x]" in failed


def test_what_limits_belief_is_said_before_the_figures(document: BenchDocument) -> None:
    page = bench_page(document)
    (said,) = re.findall(r'<ul class="warnings">(.*?)</ul>', page)
    assert re.findall(r"<li>(.*?)</li>", said) == [
        "1 of 6 cases are unstable: their rounds differ by more than 10 %, so these figures would "
        "not come back. Measure again on an idle machine.",
        "1 of 6 cases were not warm when they were measured.",
    ]
    assert page.index(said) < page.index('class="tiles"') < page.index('id="results"')
    assert 'class="warnings"' not in bench_page(document_of(measured_row()))


def test_a_busy_machine_and_random_weights_are_said() -> None:
    busy = dataclasses.replace(HERE, load_before=(1.5, 1.0, 1.0))
    drawn = manifest_of("a.onnx", weights={"sha256": "0" * 64, "source": {"kind": "random"}})
    page = read(document_of(measured_row(), artifacts={"a.onnx": drawn}, environment=busy))
    assert "was busy before it began: load average 1.50 on 2 cores." in page.text
    assert "The weights of 14 are seeded random numbers" in page.text


def test_what_stopped_calls_and_what_was_cut_short_is_said() -> None:
    rounds = tuple(dataclasses.replace(one, elapsed_ms=2000.0) for one in measured_row().rounds)
    throttled = measured_row(
        rounds=rounds, stalled=True, lost_s=6.0, throttling=Throttling(100, 60, 5.5)
    )
    died = measured_row("openvino", status=BenchStatus.FAILED, reason="it died")
    limited = dataclasses.replace(HERE, limits=Limits(2, 0.5, 1_000_000_000))
    document = document_of(throttled, died, environment=limited)
    report = dataclasses.replace(document.report, cut_short="interrupted after 5 of 7 rounds")
    page = read(dataclasses.replace(document, report=report))
    for said in (
        "The bench was cut short: interrupted after 5 of 7 rounds.",
        "1 of 1 cases were stopped for long",
        "stalled: 6.0 of 10.0 s lost beside p50",
        "throttled by the processor quota in 60 of 100 periods, 5.5 s",
        "it died; p50 50.00 ms, 20.0 images/s until then",
        "0.5 processors",
        "1.0 GB",
    ):
        assert said in page.text


def test_lineage_names_weights_parents_and_tools() -> None:
    engine = manifest_of(
        "14.engine",
        None,
        kind="engine",
        parents=({"kind": "onnx", "file": "14.onnx", "sha256": "abc123" * 10},),
        opset=None,
    )
    rows = (measured_row("tensorrt", "14.engine"),)
    (article,) = re.findall(
        r"<article.*?</article>", bench_page(document_of(*rows, artifacts={"14.engine": engine}))
    )
    words = re.sub(r"<[^>]*>", "|", article)
    steps = [re.sub(r"<[^>]*>", "", step) for step in re.findall(r"<li>.*?</li>", article)]
    assert steps == [
        "weights checkpoint 14.pth.tar, zip, feedfeedfeed beefbeefbeef",
        "onnx 14.onnx abc123abc123",
        "engine 14.engine c0ffeec0ffee",
    ]
    assert "not run: no device" in words and "torch 2.13.0, onnx 1.23.2" in words
    assert "soft split conv folded, query groups 1, fuse attention" in words
    assert "86.0 MB" in words


def test_not_run_has_one_entry_for_each_reason(document: BenchDocument) -> None:
    (listed,) = re.findall(r'<ul class="not-run">(.*?)</ul>', bench_page(document))
    entries = [re.sub(r"<[^>]*>", "", one) for one in re.findall(r"<li>.*?</li>", listed)]
    assert entries == ["ort-cuda, tensorrt (fast.onnx) no device"]


def test_the_comparison_has_its_verdicts(document: BenchDocument) -> None:
    text = read(document).text
    assert "Against old.json, measured 2026-01-02T03:04:05+00:00 on the same machine" in text
    assert "faster 1.500 × (" in text
    assert text.count("not among the old results") == 5


def test_the_summary_has_the_best_of_each(document: BenchDocument) -> None:
    page = bench_page(document)
    tiles = [
        re.sub(r"<[^>]*>", "|", tile) for tile in re.findall(r'<div class="tile.*?</div>', page)
    ]
    assert [re.sub(r"\|+", "|", tile).strip("|") for tile in tiles] == [
        "40.00| ms|lowest median latency, batch 1|#2| ort-cpu fp32",
        "2.50| ×|as fast as eager PyTorch (2.40 to 2.62)|#2| ort-cpu fp32",
        "28.6| images/s|highest throughput, batch 8|#2| ort-cpu fp32",
        "240| MB|lowest peak memory, batch 1|#1| eager fp32",
    ]


def test_a_bench_without_figures_is_a_page_too(document: BenchDocument) -> None:
    nothing = [row for row in document.report.results if row.latency_ms is None]
    page = read(document_of(*nothing))
    assert "KeyError: [x]" in page.text and page.count("figure") == page.count("svg") == 0
    assert "No artifact that was measured has a manifest." in page.text


def test_pages_of_the_same_are_the_same(document: BenchDocument) -> None:
    assert bench_page(document) == bench_page(document)


# -- the style sheet -------------------------------------------------------------------------------


def colours(scheme: str) -> dict[str, tuple[float, ...]]:
    """The colours of light, dark or print, as linear red, green and blue."""
    screen, printed = re.findall(r":root \{(.*?)\}", _resource("page.css"), re.S)
    pairs = re.findall(r"--([\w-]+): light-dark\(#([0-9a-f]{6}), #([0-9a-f]{6})\);", screen)
    found = {name: dark if scheme == "dark" else light for name, light, dark in pairs}
    if scheme == "print":
        assert "color-scheme: light;" in printed
        found |= dict(re.findall(r"--([\w-]+): #([0-9a-f]{6});", printed))
    return {
        name: tuple(linear(int(code[i : i + 2], 16) / 255) for i in (0, 2, 4))
        for name, code in found.items()
    }


def linear(value: float) -> float:
    return value / 12.92 if value <= 0.04045 else float(((value + 0.055) / 1.055) ** 2.4)


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Ratio of luminances. Source: WCAG 2.2, "contrast ratio"."""
    low, high = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in (one, other))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_colours_can_be_read(scheme: str) -> None:
    """4.5 is what WCAG asks of text at level AA."""
    found = colours(scheme)
    inks = {"ink", "soft", "warn", "good", *(f"c{n}" for n in range(8))}
    papers = {"paper", "raised", "warn-paper"}
    assert set(found) == inks | papers | {"rule"}
    poor = {
        (ink, paper): round(contrast(found[ink], found[paper]), 2)
        for ink in inks
        for paper in (papers if ink in ("ink", "soft", "warn") else {"paper"})
        if contrast(found[ink], found[paper]) < 4.5
    }
    assert poor == {}


def test_the_style_sheet_has_a_colour_for_each_series() -> None:
    from t2t_deploy.report._document import COLOURS

    styled = re.findall(r"^\.c(\d) \{ --case: var\(--c\1\); \}$", _resource("page.css"), re.M)
    assert styled == [str(n) for n in range(COLOURS + 1)]
