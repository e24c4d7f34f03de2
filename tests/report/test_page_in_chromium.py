"""The page in a browser: it renders, complains of nothing, fetches nothing, sorts and adapts.

Skipped, with the reason, where there is no Chromium.
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2t_deploy.report import BenchDocument, bench_page
from t2t_deploy.workspace import Manifest

from .chromium import Browser, open_browser
from .conftest import hostile

PHONE, DESKTOP, PAPER = 390, 1280, 688
NAME = "<script>document.title = 'run'</script>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def page(document: BenchDocument, tmp_path: Path) -> Path:
    """A page about a variant with a telling name."""
    path = tmp_path / "report.html"
    artifacts: dict[str, Manifest] = {
        name: dataclasses.replace(manifest, variant=NAME)
        for name, manifest in document.artifacts.items()
    }
    path.write_text(bench_page(dataclasses.replace(document, artifacts=artifacts)), "utf-8")
    return path


@pytest.fixture
def opened(browser: Browser, page: Path) -> Browser:
    """The browser with the page in a large window."""
    browser.open(page)
    return browser


def pixels(png: bytes) -> np.ndarray:
    """(H, W, 3) of bytes."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def column(browser: Browser, index: int) -> list[str]:
    """What the cells of a column show, from top to bottom."""
    cells: list[str] = browser.run(
        "[...document.querySelectorAll('#results tbody:not(.failed) tr')]"
        f".map((row) => row.cells[{index}].innerText.split('\\n')[0])"
    )
    return cells


def shown(browser: Browser, selector: str) -> bool:
    return bool(browser.run(f"document.querySelector({selector!r}).checkVisibility()"))


def test_it_renders_without_a_complaint_and_fetches_nothing(opened: Browser, page: Path) -> None:
    assert opened.complaints() == []
    assert opened.requests() == [page.as_uri()]
    assert opened.run("document.title") == "T2T-ViT benchmark"
    assert opened.run("document.querySelectorAll('figure svg').length") == 14
    # every drawing that is shown has an area, and its words are inside of it
    outside = opened.run(
        "[...document.querySelectorAll('figure .wide svg')].flatMap((svg) => {"
        " const frame = svg.getBoundingClientRect();"
        " return [...svg.querySelectorAll('text')].filter((text) => {"
        "  const box = text.getBoundingClientRect();"
        "  return box.left < frame.left - 1 || box.right > frame.right + 1"
        "   || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;"
        " }).map((text) => text.textContent); })"
    )
    assert outside == []


def test_a_tune_renders_its_files_and_its_frontier(
    browser: Browser, tuned: BenchDocument, tmp_path: Path
) -> None:
    path = tmp_path / "tune.html"
    path.write_text(bench_page(tuned), "utf-8")
    browser.open(path)
    assert browser.complaints() == [] and browser.requests() == [path.as_uri()]
    assert browser.run("document.title") == "T2T-ViT benchmark"
    cells = browser.run(
        "[...document.querySelectorAll('#tuning tbody tr')]"
        ".map((row) => [...row.cells].map((cell) => cell.innerText))"
    )
    assert cells[0][:5] == [
        "cpu-int8, 2 streams",
        "pick",
        "2.50",
        "1.000 (1.000 to 1.000)",
        "6.0e-03",
    ]
    assert cells[1][2] == "–" and "<script>" in cells[1][-1]
    assert "The mean. Dashed" in browser.run("document.body.innerText")
    assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_name_that_is_a_script_is_shown_and_not_run(opened: Browser) -> None:
    assert NAME in opened.run("document.body.innerText")
    assert opened.run("document.title") == "T2T-ViT benchmark"


def test_a_script_that_got_into_the_page_would_not_run(browser: Browser, page: Path) -> None:
    """Nothing gets in, as far as we know; the page's policy holds where we are wrong."""
    page.write_text(page.read_text("utf-8").replace("<main>", f"<main>{NAME}"), "utf-8")
    browser.open(page)
    assert browser.run("document.title") == "T2T-ViT benchmark"
    (complaint,) = browser.complaints()
    assert "Content Security Policy" in complaint and "script-src" in complaint


def test_an_error_of_the_script_is_a_complaint(browser: Browser, tmp_path: Path) -> None:
    """What the other tests rely on: the browser tells."""
    path = tmp_path / "broken.html"
    path.write_text("<script>console.error('said'); missing();</script>")
    browser.open(path)
    said, thrown = browser.complaints()
    assert "said" in said and "missing is not defined" in thrown


def test_a_click_on_a_heading_sorts_by_it(opened: Browser) -> None:
    heading, p50 = "#results th:nth-child(4)", 3
    measured = ["100.00", "40.00", "60.00", "700.00", "280.00", "320.00"]
    assert column(opened, p50) == measured
    ascending = sorted(measured, key=float)
    for order, values in (("ascending", ascending), ("descending", ascending[::-1])):
        opened.click(f"{heading} button")
        assert column(opened, p50) == values
        assert opened.run(f"document.querySelector('{heading}').ariaSort") == order
    assert opened.run("document.querySelectorAll('th[aria-sort]').length") == 1
    # the rows that failed stay last, wherever the others go
    last = opened.run("[...document.querySelectorAll('#results tr')].at(-1).innerText")
    assert last.startswith("openvino, fast.onnx")


def test_what_has_no_value_is_last_in_either_order(opened: Browser) -> None:
    small, large, none = (["7.0e-07"] * 2, ["9.7e-04"] * 2, ["reference"] * 2)
    for values in (small + large + none, large + small + none):
        opened.click("#results th:nth-child(10) button")
        assert column(opened, 9) == values


def test_words_are_sorted_as_words(opened: Browser) -> None:
    opened.click("#results th:nth-child(2) button")
    assert column(opened, 1) == ["fp16"] * 2 + ["fp32"] * 4


def test_pointing_at_a_case_sets_the_others_aside(opened: Browser) -> None:
    row = "document.querySelector('#results tr[data-series=\"2\"]')"
    aside = "[...document.querySelectorAll('svg .aside')].map((mark) => mark.dataset.series)"
    for event, found in (("pointerenter", {"1", "3"}), ("pointerleave", set())):
        opened.run(f"{row}.dispatchEvent(new PointerEvent('{event}'))")
        assert set(opened.run(aside)) == found


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_fits_the_window_in_both_schemes(
    browser: Browser, page: Path, width: int, dark: bool
) -> None:
    browser.open(page, width=width, dark=dark)
    picture = pixels(browser.screenshot())
    assert picture.shape[1] == width, "nothing is wider than the window"
    assert browser.run("document.documentElement.scrollWidth") == width
    corner = picture[:20, :20].mean()
    assert corner < 40 if dark else corner > 240
    # most of it is paper, and it is no empty page: words, and all of the cases' colours
    paper = (picture == picture[0, 0]).all(axis=2).mean()
    assert 0.5 < paper < 0.99
    swatches = "['c0', 'c1', 'c2'].map((name) => document.querySelector(`.${name} .swatch`))"
    for code in browser.run(f"{swatches}.map((one) => getComputedStyle(one).color)"):
        colour = [int(part) for part in re.findall(r"\d+", code)]
        assert (picture == colour).all(axis=2).sum() > 100, code
    assert browser.complaints() == []


def test_a_phone_has_its_own_drawings_and_a_table_of_cards(browser: Browser, page: Path) -> None:
    browser.open(page)
    for selector, visible in ((".wide", True), (".narrow", False), (".sort-choice", False)):
        assert shown(browser, selector) is visible, selector
    browser.open(page, width=PHONE)
    for selector, visible in ((".wide", False), (".narrow", True), (".sort-choice", True)):
        assert shown(browser, selector) is visible, selector
    assert not shown(browser, "#results thead")
    smallest = browser.run(
        "Math.min(...[...document.querySelectorAll('.narrow svg')].map((svg) =>"
        " svg.getBoundingClientRect().width / svg.viewBox.baseVal.width))"
    )
    assert smallest == 1, "a drawing is not scaled down: its words stay as large as they are"
    browser.run(
        "(() => { const choice = document.getElementById('sort-by'); choice.value = '3';"
        " choice.dispatchEvent(new Event('change')); })()"
    )
    assert column(browser, 3)[:2] == ["40.00", "60.00"]


def test_print_is_light_whole_and_has_no_buttons(browser: Browser, page: Path) -> None:
    browser.open(page, width=PAPER, dark=True)
    browser.prefer(dark=True, medium="print")
    white = (pixels(browser.screenshot()) == 255).all(axis=2).mean()
    assert white > 0.5
    assert shown(browser, "#results thead") and shown(browser, ".wide")
    assert not shown(browser, ".sort-choice") and not shown(browser, ".command button")
    assert browser.run("document.documentElement.scrollWidth") <= PAPER
    assert browser.pdf().startswith(b"%PDF-")
    browser.prefer()


def test_nothing_of_a_file_is_more_than_text(
    browser: Browser, unlike: BenchDocument, tmp_path: Path
) -> None:
    """Manifests and benches in which every text is an attack."""
    path = tmp_path / "attack.html"
    path.write_text(bench_page(hostile(unlike)), "utf-8")
    browser.open(path)
    assert browser.run("document.title") == "T2T-ViT benchmark"
    assert browser.run("document.querySelectorAll('img, iframe, object, [onload]').length") == 0
    assert browser.complaints() == []
    assert browser.requests() == [path.as_uri()]
    shown_text = browser.run("document.body.innerText")
    assert shown_text.count("<script>document.title = 'run'</script>") > 20
    plain = tmp_path / "plain.html"
    plain.write_text(bench_page(unlike), "utf-8")
    scripts = "document.scripts.length"
    attacked_scripts = browser.run(scripts)
    browser.open(plain)
    assert attacked_scripts == browser.run(scripts)
