"""The page in a real browser: every state that a person meets, each with a screenshot.

Look at them with ``pytest tests/serving/test_page.py --basetemp=DIR``.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.serving.conftest import PATIENCE_S, Live

playwright = pytest.importorskip(
    "playwright.sync_api", reason="without a browser's driver: pip install playwright"
)
expect = playwright.expect
CHROMIUM = shutil.which("chromium")
PAGE = Path(__file__).parents[2] / "serving" / "page"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="without Chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    options = (
        *("--no-sandbox", "--disable-gpu", "--disable-background-networking"),
        *("--disable-component-update", "--disable-sync"),
    )
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: playwright.Browser, live: Live) -> Iterator[playwright.Page]:
    """The page, which asks no other host and runs without an error of its own."""
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    page.set_default_timeout(PATIENCE_S * 1000)
    expect.set_options(timeout=PATIENCE_S * 1000)
    errors: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    own = f"http://127.0.0.1:{live.port}/"
    page.goto(own)
    expect(page.locator("#samples img")).to_have_count(3)
    yield page
    page.close()
    assert errors == []
    assert [url for url in asked if not url.startswith((own, "blob:", "data:"))] == []


@pytest.fixture
def shoot(page: playwright.Page, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], None]:
    folder = tmp_path_factory.getbasetemp() / "screenshots"
    folder.mkdir(exist_ok=True)
    return lambda name: page.screenshot(path=folder / f"{name}.png", full_page=True)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "small.png"
    with Image.open(PAGE / "cat.jpg") as image:
        image.resize((96, 64)).save(path)
    return path


def choose(page: playwright.Page, path: Path) -> None:
    """Choose a file and wait for its result."""
    page.locator("#file").set_input_files(path)
    expect(page.locator("#result")).to_be_visible()
    expect(page.locator("#status")).to_have_text("Done.")


def test_a_photo_is_encoded_and_compared(
    page: playwright.Page, shoot: Callable[[str], None], small: Path, live: Live
) -> None:
    shoot("1-empty")
    expect(page.locator("#result")).to_be_hidden()
    expect(page.locator("#credits")).to_contain_text("vultilion (CC BY 2.0)")
    with live.stopped_lane():
        page.locator("#file").set_input_files(small)
        expect(page.locator("#status")).to_have_text("Encoding…")
        shoot("2-encoding")
    expect(page.locator("#status")).to_have_text("Done.")
    figures = page.locator("#figures").text_content()
    assert re.match(r"96×64 px · \d+ bytes · \d\.\d{4} bits per pixel", figures), figures
    size = int(re.search(r"(\d+) bytes", figures)[1])  # type: ignore[index]
    with page.expect_download() as download:
        page.locator("#download").click()
    assert download.value.suggested_filename == "small.pco"
    saved = Path(download.value.path()).read_bytes()
    assert (len(saved), saved[:2]) == (size, b"\x50\xc0")
    page.locator("summary").click()
    expect(page.locator("#stages")).to_contain_text("decoder")
    shoot("3-result")

    slider = page.locator("#slider")
    slider.focus()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    assert slider.input_value() == "70"
    assert page.locator("#compare").evaluate(
        "element => getComputedStyle(element).getPropertyValue('--cut')"
    ) == ("70%")
    shoot("4-slider")

    page.locator("#passes").focus()
    page.keyboard.press("Home")
    expect(page.locator("#passes-value")).to_have_text("1 of 8")
    expect(page.locator("#figures")).not_to_have_text(figures)  # fewer passes, fewer bytes
    expect(page.locator("#status")).to_have_text("Done.")

    page.emulate_media(color_scheme="dark")
    shoot("5-dark")
    page.set_viewport_size({"width": 390, "height": 844})
    shoot("6-phone-dark")
    assert page.locator("html").evaluate("element => element.scrollWidth") <= 390


def test_it_grows_pass_by_pass_and_is_set_beside_others(
    page: playwright.Page, shoot: Callable[[str], None], small: Path
) -> None:
    choose(page, small)
    page.locator("#grow").click()
    expect(page.locator("#passes-strip figure")).to_have_count(8)
    expect(page.locator("#passes-strip figcaption").last).to_have_text("pass 8 of 8")
    shoot("7-passes")
    page.locator("#classical").click()
    expect(page.locator("#others-strip figcaption")).to_have_text(
        [re.compile(f"{name}: \\d+ bytes") for name in ("percoedge", "JPEG", "WebP", "AVIF")]
    )
    expect(page.locator("#status")).to_have_text("Done.")
    shoot("8-classical")


def test_a_stream_is_decoded_and_nothing_compared(
    page: playwright.Page, shoot: Callable[[str], None], streams: list[bytes], tmp_path: Path
) -> None:
    path = tmp_path / "given.pco"
    path.write_bytes(streams[0])
    choose(page, path)
    expect(page.locator("#original")).to_be_hidden()
    expect(page.locator("#classical")).to_be_hidden()
    expect(page.locator("#figures")).to_contain_text(f"{len(streams[0])} bytes")
    shoot("9-stream")


def test_what_went_wrong_is_said_in_words(
    page: playwright.Page, shoot: Callable[[str], None], small: Path, tmp_path: Path
) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear Sir or Madam")
    page.locator("#file").set_input_files(path)
    expect(page.get_by_role("alert")).to_contain_text("expected a JPEG, PNG, WebP or AVIF image")
    expect(page.locator("#result")).to_be_hidden()
    shoot("10-error")
    page.route("**/v1/**", lambda route: route.abort())
    page.locator("#file").set_input_files(small)
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    page.unroute("**/v1/**")
    choose(page, small)
    expect(page.get_by_role("alert")).to_be_hidden()
    page.route("**/page/*.jpg", lambda route: route.abort())
    page.locator("#samples button").first.click()
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    choose(page, small)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_sample_is_one_key_away(page: playwright.Page, shoot: Callable[[str], None]) -> None:
    page.locator("#samples button").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#result")).to_be_visible()
    expect(page.locator("#figures")).to_contain_text("451×300 px")
    shoot("11-sample")
