"""The page for people, in a real browser."""

import base64
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from common.files import ROOT
from tests.support.tiny_model import grey_photo, write_tiny_model

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
DROP = """base64 => {
    const bytes = Uint8Array.from(atob(base64), character => character.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], "bin.jpg", {type: "image/jpeg"}));
    return data;
}"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    model = write_tiny_model(tmp_path_factory.mktemp("model"))
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "serving.container.server",
            "--model",
            model,
            "--port",
            "0",
            "--page",
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    yield json.loads(process.stdout.readline())["listening"]
    process.terminate()
    process.communicate(timeout=600)


@pytest.fixture(scope="module")
def browser_page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
                *("--disable-background-networking", "--disable-component-update"),
            ],
        )
        yield browser.new_page()
        browser.close()


@pytest.fixture
def page(browser_page: Page, url: str) -> Iterator[Page]:
    """A freshly loaded page that logs no error."""
    errors: list[str] = []
    browser_page.on("pageerror", lambda error: errors.append(str(error)))
    browser_page.goto(url)
    yield browser_page
    assert errors == []


def choose(page: Page, content: bytes, name: str = "bin.jpg") -> None:
    page.locator("#file").set_input_files(
        {"name": name, "mimeType": "image/jpeg", "buffer": content}
    )


def test_a_chosen_photo_is_shown_and_counted(page: Page) -> None:
    choose(page, grey_photo(3))
    expect(page.locator("#count")).to_have_text("3 items")
    expect(page.locator("#photo")).to_be_visible()
    expect(page.locator("#note")).to_contain_text("mean 3.0")
    expect(page.locator("#note")).to_contain_text(" s")


def test_the_probabilities_are_bars(page: Page) -> None:
    choose(page, grey_photo(2))
    expect(page.locator("#bars tr")).to_have_count(5)
    assert page.locator("#bars th").all_inner_texts() == ["1", "2", "3", "4", "5"]
    widths = [
        page.locator("#bars .bar div").nth(row).evaluate("bar => bar.getBoundingClientRect().width")
        for row in range(5)
    ]
    assert max(widths) == widths[1] > 100
    assert page.locator("#bars td").nth(3).inner_text().endswith(" %")


def test_a_dropped_photo_is_counted(page: Page) -> None:
    data = page.evaluate_handle(DROP, base64.b64encode(grey_photo(5)).decode())
    for event in ("dragover", "drop"):
        page.dispatch_event("#drop", event, {"dataTransfer": data})
    expect(page.locator("#count")).to_have_text("5 items")


def test_one_item_is_not_items(page: Page) -> None:
    choose(page, grey_photo(1))
    expect(page.locator("#count")).to_have_text("1 item")


def test_a_record_is_judged(page: Page) -> None:
    choose(page, grey_photo(2))
    page.locator("#record").fill("5")
    page.locator("#record").blur()
    expect(page.locator("#note")).to_contain_text("the record is right: 0.0 %")
    expect(page.locator("#note")).to_contain_text("someone should look")
    page.locator("#record").fill("2")
    page.locator("#record").blur()
    expect(page.locator("#note")).to_contain_text(re.compile("the record is right: (9|100)"))
    expect(page.locator("#note")).not_to_contain_text("someone should look")


def test_what_is_no_photo_is_told_and_the_next_one_counted(page: Page) -> None:
    choose(page, b"no photo")
    expect(page.locator("#note")).to_contain_text("not a readable JPEG or PNG photo")
    expect(page.locator("#bars tr")).to_have_count(0)
    expect(page.locator("#photo")).to_be_hidden()
    choose(page, grey_photo(4), "other.jpg")
    expect(page.locator("#count")).to_have_text("4 items")
