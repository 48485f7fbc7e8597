"""The report in a real browser: no console errors, no requests, sorting and filtering work, large ones stay light."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.synthetic_runs import demo, in_memory, random_table, table_of, write_evaluation, write_questions, write_run
from vlmtune.evaluate.curves import LearningCurveRun, measure_learning_curve
from vlmtune.report.learning_curve import write_learning_curve
from vlmtune.report.render import render, render_comparison

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small")
    runs = [write_run(root / name, name, num_steps=20) for name in ("tuned_10", "tuned_100")]
    return render_comparison(demo(root, (1.0, 1.5, 2.0), num=200), root / "out", "Digits", runs=runs)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classes whose names are hard on a page: markup, quotes, two spaces, emoji, one of 180 letters without a gap."""
    root = tmp_path_factory.mktemp("odd")
    names = ("<script>alert(1)</script>", 'it\'s "so"  called', "😀", "x" * 180)
    draw = np.random.default_rng(0)
    truth, guess = draw.integers(0, 4, (2, 80))
    table = table_of(truth, guess, names, seconds=np.full(80, 0.01))
    write_evaluation(root / "evaluation" / "test", "y" * 150, table)
    return render_comparison([root / "evaluation" / "test"], root / "out", "z" * 200)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("large") / "run", "run")
    for seed, (name, skill) in enumerate((("base", 2.0), ("fine-tuned", 4.0))):
        table = random_table(num=10_000, num_labels=100, skill=skill, seed=seed, num_unreadable=2)
        write_evaluation(folder / "evaluation" / f"test-{name}", name, table, with_thumbnails=name != "base")
    return render(folder)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("questions") / "run", "run", num_steps=20)
    for seed, (name, skill) in enumerate((("base", 0.1), ("fine-tuned", 0.7))):
        write_questions(folder / "evaluation" / f"test-{name}", name, skill, seed=seed)
    return render(folder)


@pytest.fixture(scope="module")
def learning_curve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = []
    for fraction, skill in ((0.01, 1.0), (0.1, 2.5), (1.0, 4.0)):
        for seed in range(3):
            evaluation = in_memory("fine-tuned", random_table(skill=skill, seed=10 * seed + round(10 * skill)))
            runs.append(
                LearningCurveRun(fraction, seed, round(1000 * fraction), f"run-{fraction:g}-{seed}", evaluation, 9, 1.0)
            )
    found = measure_learning_curve(runs, in_memory("base", random_table(skill=0.5, seed=77)))
    about = {"name": "digits", "source": "builtin:digits", "model": "builtin:tiny", "num_planned": 9}
    return write_learning_curve(tmp_path_factory.mktemp("learning_curve"), {**found, **about})


class Opened:
    """A page with what it complained about and what it asked for."""

    def __init__(self, browser: Any, path: Path, width: int = 1200, scheme: str = "light") -> None:
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def texts(self, selector: str) -> list[str]:
        return [text.strip() for text in self.page.locator(selector).all_inner_texts()]


def test_no_console_messages_and_no_requests(browser: Any, small: Path) -> None:
    opened = Opened(browser, small)
    outside = [url for url in opened.requests if not url.startswith(("data:", "file:"))]
    assert (opened.problems, outside) == ([], [])
    assert [url for url in opened.requests if url.startswith("file:")] == [small.as_uri()]


def test_a_heading_sorts_numbers_as_numbers_both_ways(browser: Any, small: Path) -> None:
    opened = Opened(browser, small)
    recall = "#per-class tbody tr td:nth-child(3)"
    heading = opened.page.locator("#per-class th:nth-child(3)")
    for wanted, is_reversed in (("descending", True), ("ascending", False)):
        heading.locator("button").click()
        values = [float(text.rstrip("%")) for text in opened.texts(recall)]
        assert values == sorted(values, reverse=is_reversed)
        assert heading.get_attribute("aria-sort") == wanted
    opened.page.locator("#per-class th:nth-child(1) button").click()
    names = opened.texts("#per-class tbody tr td:nth-child(1)")
    assert names == sorted(names) and len(names) == 10
    assert heading.get_attribute("aria-sort") is None
    assert opened.problems == []


def test_filters_show_the_images_that_match_and_count_them(browser: Any, small: Path) -> None:
    opened = Opened(browser, small)
    page = opened.page
    visible = ".gallery > li:not([hidden])"
    everything = page.locator(visible).count()
    truth = opened.texts(f"{visible} .truth")[0]
    page.select_option("select[name=truth]", truth)
    chosen = opened.texts(f"{visible} .truth")
    assert set(chosen) == {truth}
    assert 0 < len(chosen) < everything
    noun = "image" if len(chosen) == 1 else "images"
    assert page.locator(".filters output").inner_text() == f"{len(chosen)} {noun}"
    page.fill("input[name=search]", "no such file")
    assert page.locator(visible).count() == 0
    page.click(".filters button[type=reset]")
    # Not wait_for_function: it polls by eval, which the page's own security policy forbids.
    playwright.expect(page.locator(visible)).to_have_count(everything)
    page.select_option("select[name=kind]", "right")
    assert set(opened.texts(f"{visible} .guess")) == {"recognized"}
    assert opened.problems == []


def test_questions_are_filtered_by_type_and_found_by_their_words(browser: Any, questions: Path) -> None:
    opened = Opened(browser, questions)
    page, visible = opened.page, ".gallery > li:not([hidden])"
    everything = page.locator(visible).count()
    page.select_option("select[name=answerType]", "yes/no")
    assert set(opened.texts(f"{visible} .truth")) == {"Is the ball red?"}
    assert 0 < page.locator(visible).count() < everything
    page.fill("input[name=search]", "how many")
    assert page.locator(visible).count() == 0
    page.select_option("select[name=answerType]", "")
    assert set(opened.texts(f"{visible} .truth")) == {"How many balls are there?"}
    page.locator("#types th:nth-child(3) button").first.click()
    values = [float(text.rstrip("%")) for text in opened.texts("#types table:first-of-type tr td:nth-child(3)")[:3]]
    assert values == sorted(values, reverse=True)
    assert opened.problems == []


def test_the_page_of_a_learning_curve_sorts_its_runs(browser: Any, learning_curve: Path) -> None:
    opened = Opened(browser, learning_curve)
    heading = opened.page.locator("#runs th:nth-child(5)")
    heading.locator("button").click()
    values = [float(text.rstrip("%")) for text in opened.texts("#runs tbody tr td:nth-child(5)")]
    assert values == sorted(values, reverse=True) and len(values) == 9
    assert (opened.problems, [url for url in opened.requests if url.startswith("http")]) == ([], [])


def test_a_cell_of_the_confusion_matrix_shows_its_images(browser: Any, small: Path) -> None:
    opened = Opened(browser, small)
    cell = opened.page.locator("svg .cell.wrong").first
    cell.hover()
    told = opened.page.locator(".readout").inner_text()
    assert " called " in told
    cell.click()
    visible = ".gallery > li:not([hidden])"
    truth, guess = told.split(": ")[0].split(" called ")
    assert set(opened.texts(f"{visible} .truth")) == {truth}
    assert set(opened.texts(f"{visible} .guess")) == {f"taken for {guess}"}


def test_images_of_oddly_named_classes_are_found_by_their_cells(browser: Any, odd: Path) -> None:
    opened = Opened(browser, odd)
    for cell in opened.page.locator("svg .cell.wrong").all():
        told = cell.locator("title").text_content()
        cell.dispatch_event("click")  # a click would hit the page while it still scrolls to the images
        count = int(told.rpartition(": ")[2].split()[0])
        assert opened.texts(".filters output") == [f"{count} image{'s' if count > 1 else ''}"], told
    assert opened.problems == []


def test_without_scripts_there_are_no_dead_controls(browser: Any, small: Path) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(small.as_uri())
    assert page.locator(".gallery > li").last.is_visible()
    assert not any(page.locator(control).is_visible() for control in (".filters", ".theme", ".more"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_system_and_the_button_turns_it(browser: Any, small: Path, scheme: str) -> None:
    opened = Opened(browser, small, scheme=scheme)
    background = "getComputedStyle(document.body).backgroundColor"
    before = opened.page.evaluate(background)
    red = int(before.removeprefix("rgb(").split(",")[0])
    assert red > 200 if scheme == "light" else red < 50
    opened.page.click(".theme")
    assert opened.page.evaluate(background) != before


@pytest.mark.parametrize("width", [360, 768, 1200])
def test_the_page_never_scrolls_sideways(
    browser: Any, small: Path, large: Path, questions: Path, learning_curve: Path, odd: Path, width: int
) -> None:
    for path in (small, large, questions, learning_curve, odd):
        opened = Opened(browser, path, width=width)
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_report_of_10000_images_is_light_and_works(
    browser: Any, large: Path, record_property: Callable[[str, object], None]
) -> None:
    assert large.stat().st_size < 15_000_000
    opened = Opened(browser, large)
    page = opened.page
    # Told, not asserted: a test must not depend on what else the machine does. `pytest -rA` prints it.
    milliseconds = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    record_property("milliseconds until loaded", milliseconds)
    print(f"10,000 predictions, 100 classes: {large.stat().st_size / 1e6:.1f} MB, loaded in {milliseconds:.0f} ms")
    # A bound on work, not a race: the parsed page has few enough elements for any machine.
    assert page.evaluate("document.querySelectorAll('*').length") < 40_000
    assert page.locator(".gallery > li:not([hidden])").count() == 60
    page.click(".more")
    assert page.locator(".gallery > li:not([hidden])").count() == 300
    page.locator("#per-class th:nth-child(3) button").click()
    values = [float(text.rstrip("%")) for text in opened.texts("#per-class tbody tr td:nth-child(3)")]
    assert values == sorted(values, reverse=True) and len(values) == 100
    assert "2 images could not be read" in page.locator(".summary").inner_text()
    assert opened.problems == []
