"""The server's page in a real browser: upload, answer, question, broken file; on a desk and on a phone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.served import Server, digit_png

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (apt-get install chromium)"),
]
PATIENCE_MS = 60_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Opened:
    """The page with what it complained about and where it sent requests."""

    def __init__(self, browser: Any, server: Server, width: int = 1100, scheme: str = "light") -> None:
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("console", lambda message: message.type == "error" and self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(server.url)

    def upload(self, name: str, data: bytes, kind: str = "image/png") -> None:
        self.page.set_input_files("#file", {"name": name, "mimeType": kind, "buffer": data})


def test_an_uploaded_image_gets_label_bars(browser: Any, server: Server) -> None:
    opened = Opened(browser, server)
    opened.upload("seven.png", digit_png())
    opened.page.wait_for_selector("#bars li")
    assert opened.page.inner_text("#verdict") == "7"
    assert opened.page.locator("#bars li").count() == 10
    assert opened.page.locator("#bars .name").first.inner_text() == "7"
    assert opened.page.locator("#preview").is_visible()
    assert opened.problems == []
    outside = [url for url in opened.requests if not url.startswith((server.url, "data:", "blob:"))]
    assert outside == []


def test_an_example_is_answered_and_a_pasted_image_replaces_it(browser: Any, server: Server) -> None:
    opened = Opened(browser, server)
    opened.page.locator("#examples button").nth(3).click()
    opened.page.wait_for_selector("#bars li")
    assert opened.page.inner_text("#verdict") == "3"
    opened.page.evaluate(
        """(bytes) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "pasted.png", { type: "image/png" }));
            dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true }));
        }""",
        list(digit_png()),
    )
    playwright.expect(opened.page.locator("#verdict")).to_have_text("7", timeout=PATIENCE_MS)
    assert opened.problems == []


def test_a_question_is_answered_with_the_chosen_length(browser: Any, server: Server) -> None:
    opened = Opened(browser, server)
    opened.upload("seven.png", digit_png())
    opened.page.click("#tab-question")
    opened.page.fill("#question", "What digit is it?")
    opened.page.click("#send")
    playwright.expect(opened.page.locator("#answer")).to_have_text("7", timeout=PATIENCE_MS)
    assert opened.problems == []


def test_a_broken_file_is_reported_and_the_next_answered(browser: Any, server: Server) -> None:
    opened = Opened(browser, server)
    opened.upload("broken.png", digit_png()[:200])
    error = opened.page.locator("#error")
    playwright.expect(error).to_contain_text("damaged", timeout=PATIENCE_MS)
    opened.upload("notes.png", b"these are notes")
    playwright.expect(error).to_contain_text("not an image in a known format", timeout=PATIENCE_MS)
    opened.upload("seven.png", digit_png())
    playwright.expect(opened.page.locator("#verdict")).to_have_text("7", timeout=PATIENCE_MS)
    assert error.is_hidden()


def test_own_labels_and_a_threshold_change_the_answer(browser: Any, server: Server) -> None:
    opened = Opened(browser, server)
    opened.page.click("#advanced summary")
    opened.page.fill("#own-labels", "7, 1\n3")
    opened.upload("seven.png", digit_png())
    playwright.expect(opened.page.locator("#bars li")).to_have_count(3, timeout=PATIENCE_MS)
    opened.page.evaluate(
        "const abstain = document.getElementById('abstain'); abstain.max = 1; abstain.step = 'any'; "
        "abstain.value = 1; abstain.dispatchEvent(new Event('change'))"
    )
    playwright.expect(opened.page.locator("#verdict")).to_have_text("No label", timeout=PATIENCE_MS)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_everything_without_scrolling_sideways(
    browser: Any, server: Server, scheme: str, tmp_path: Path
) -> None:
    opened = Opened(browser, server, width=360, scheme=scheme)
    opened.upload("seven.png", digit_png())
    opened.page.wait_for_selector("#bars li")
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 360
    red = int(
        opened.page.evaluate("getComputedStyle(document.body).backgroundColor").removeprefix("rgb(").split(",")[0]
    )
    assert red > 200 if scheme == "light" else red < 50
    opened.page.click("#theme")
    assert opened.page.evaluate("document.documentElement.dataset.theme") != scheme
