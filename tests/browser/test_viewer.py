"""The viewer in a browser: controls do what they say, and nothing fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.conftest import SCREENSHOTS
from tests.processes import eventually
from tests.viewers import TwoSlides
from trainers.viewer.server import Viewer

pytestmark = pytest.mark.browser

RANGE = "() => { const p = Bokeh.documents[0].get_model_by_name('{}'); return [p.x_range.start, p.x_range.end]; }"
SHOWN = (
    """() => Array.from(Bokeh.documents[0].get_model_by_name('values').data.image[0]).filter((v) => !isNaN(v)).length"""
)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Viewer(TwoSlides(tmp_path_factory.mktemp("viewer")), workers=2).running() as address:
        yield address


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    own, failures = browser.new_page(viewport={"width": 1280, "height": 800}), list[str]()
    own.on("console", lambda message: message.type == "error" and failures.append(message.text))
    own.on("pageerror", lambda error: failures.append(str(error)))
    own.on("response", lambda answer: answer.status >= 400 and failures.append(f"{answer.status} {answer.url}"))
    own.goto(url)
    settle(own)
    yield own
    own.close()
    assert failures == []


def settle(page: Any) -> None:
    page.wait_for_function("() => window.her2cache && window.her2cache.ready")
    page.wait_for_load_state("networkidle")


def middle(page: Any, k: int = 0) -> tuple[float, float]:
    box = page.locator(".plot").nth(k).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_a_slide_with_its_sister(page: Any) -> None:
    assert page.locator(".plot canvas").count() >= 2
    for stain in ("he", "ihc"):
        loaded = f"() => performance.getEntriesByType('resource').some((e) => e.name.includes('/tile/0/{stain}/'))"
        page.wait_for_function(loaded)
    settle(page)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / "viewer-two-slides.png")


def test_a_click_shows_the_patch(page: Any) -> None:
    assert page.locator("#patch").is_hidden()
    page.mouse.click(*middle(page))
    page.locator("#patch").wait_for()
    assert page.locator("#patch-title").inner_text().startswith("Patch at (600, 4")
    assert page.locator("#patch-values").inner_text().split() == ["attention-weighted", "score", "1", "signed", "0"]
    page.wait_for_function("() => document.getElementById('patch-picture').naturalWidth > 0")
    chosen = "() => Bokeh.documents[0].get_model_by_name('chosen').data.left"
    assert page.evaluate(chosen) == [300]  # um
    page.keyboard.press("Escape")
    assert page.evaluate(chosen) == []
    assert page.locator("#patch").is_hidden()


ASPECT = """() => ["he", "ihc"].map((name) => {
  const p = Bokeh.documents[0].get_model_by_name(name);
  return (p.y_range.end - p.y_range.start) / p.inner_height / ((p.x_range.end - p.x_range.start) / p.inner_width);
})"""


def test_nothing_is_stretched(page: Any) -> None:
    def is_square() -> bool:
        return all(abs(ratio - 1) < 0.01 for ratio in page.evaluate(ASPECT))

    assert eventually(is_square, 5)
    for width, height in ((700, 900), (1700, 700), (1920, 1080), (1280, 800)):
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_timeout(400)
        assert eventually(is_square, 5), page.evaluate(ASPECT)
        page.mouse.move(*middle(page))
        page.mouse.wheel(0, -200)
        assert eventually(is_square, 5), page.evaluate(ASPECT)
        page.get_by_role("button", name="Whole slide").click()
        assert eventually(is_square, 5), page.evaluate(ASPECT)
        low, high = page.evaluate(RANGE.replace("{}", "he"))
        assert low <= 0.5
        assert high >= 649.5


def test_zoom_and_pan_are_linked(page: Any) -> None:
    def span(name: str) -> list[float]:
        return page.evaluate(RANGE.replace("{}", name))

    before = span("he")
    page.mouse.move(*middle(page))
    page.mouse.wheel(0, -300)
    assert eventually(lambda: span("he")[1] - span("he")[0] < 600, 10)
    assert span("ihc") == span("he") != before
    page.get_by_role("button", name="Whole slide").click()
    settle(page)
    assert span("he") == pytest.approx(before, rel=0.02)
    assert span("ihc") == span("he")


def test_controls(page: Any) -> None:
    assert page.evaluate(SHOWN) == 96
    page.locator("#threshold").fill("500")
    assert page.locator("#threshold-value").inner_text() == "1"
    assert page.evaluate(SHOWN) == 48  # the half of larger values
    page.locator("#layer").select_option(label="signed")
    assert page.evaluate(SHOWN) == 96
    assert page.locator("#meaning").inner_text() == "For or against."
    assert page.locator("#scale-low").inner_text() == "-1"
    page.locator("#opacity").fill("0.2")
    assert page.locator("#opacity-value").inner_text() == "20 %"
    alpha = "() => Bokeh.documents[0].get_model_by_name('heatmap').glyph.global_alpha.value"
    assert page.evaluate(alpha) == pytest.approx(0.2)


def test_the_list_leads_to_other_slides(page: Any) -> None:
    page.locator("#filter").fill("second")
    assert page.locator("nav tbody tr:visible").count() == 1
    page.get_by_role("link", name="second <b>").click()
    settle(page)
    assert page.locator("h1").inner_text() == "second <b>"
    assert page.locator(".plot").count() == 1
    page.get_by_role("link", name="lost").click()
    assert "lost.tif does not exist" in page.locator(".problem").inner_text()
