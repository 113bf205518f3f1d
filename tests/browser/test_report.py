"""report.html in a browser: opened as a file, without a network, its controls do what they say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import SCREENSHOTS
from tests.predictions import CASES, write_scores, write_sweep
from trainers.report import write_report

pytestmark = pytest.mark.browser

EVIL = "</script><script>document.title = 'gone'</script><b>"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sweep = write_sweep(tmp_path_factory.mktemp("report"), {EVIL: 2.0, "alexnet-random": 0.0})
    write_scores(sweep, EVIL)
    return write_report(sweep)["report.html"]


@pytest.fixture(scope="module")
def page(browser: Any, file: Path) -> Iterator[Any]:
    own, failures, asked = browser.new_page(viewport={"width": 1280, "height": 900}), list[str](), list[str]()
    own.on("console", lambda message: message.type in {"error", "warning"} and failures.append(message.text))
    own.on("pageerror", lambda error: failures.append(str(error)))
    own.on("request", lambda request: request.url.startswith(("data:", "blob:")) or asked.append(request.url))
    own.goto(file.as_uri())
    own.wait_for_function("() => document.documentElement.dataset.charts === 'shown'")
    yield own  # one page for all tests, for it takes seconds to open
    own.close()
    assert failures == []
    assert asked == [file.as_uri()]


def visible(page: Any, chart: int) -> list[str]:
    """The kinds of lines that a chart shows, with the positions of their embedder and class."""
    script = (
        f"[...Bokeh.documents[{chart}].roots()[0].references()]"
        ".filter((r) => r.type === 'GlyphRenderer' && r.visible && r.tags[1] >= 0).map((r) => r.tags.join(' '))"
    )
    return sorted(page.evaluate(script))


def test_roc_curves_switch_by_embedder_and_class(page: Any) -> None:
    embedder, of_class = (page.locator(f"[data-chart=roc] select[name={name}]") for name in ("embedder", "class"))
    assert visible(page, 0) == [f"mean 0 {c}" for c in range(4)]
    assert page.locator("#key-roc li").count() == 4
    of_class.select_option(label="2+")
    assert visible(page, 0) == ["band 0 2", "mean 0 2", "run 0 2", "run 0 2", "run 0 2"]
    embedder.select_option(label="every one")
    assert visible(page, 0) == ["mean 0 2", "mean 1 2"]
    assert EVIL in page.locator("#key-roc").inner_text()
    of_class.select_option(label="every one")  # every line at once cannot be read
    assert (embedder.input_value(), len(visible(page, 0))) == ("0", 4)


def test_a_tooltip_shows_names_as_text(page: Any) -> None:
    chart = page.locator("#chart-roc")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    tooltip = page.locator(".bk-tooltip-content").first
    for k in range(75):  # down the diagonal from the upper left corner, which crosses the curve
        page.mouse.move(box["x"] + 60 + 5 * k, box["y"] + 10 + 3 * k)
        page.wait_for_timeout(30)
        if tooltip.is_visible():
            break
    text = tooltip.inner_text()
    assert text.strip().startswith(EVIL)
    assert ", AUC 0." in text
    assert page.title().startswith("HER2 score")


def test_learning_curves_switch(page: Any) -> None:
    own = {kind for kind in visible(page, 1) if kind.split()[1] == "0"}
    assert own == set(visible(page, 1)) == {"kept 0 -1", "other 0 -1", "train 0 -1", "val 0 -1"}
    page.locator("[data-chart=learning] select").select_option("1")
    page.locator("[data-chart=learning] input").uncheck()
    assert set(visible(page, 1)) == {"kept 1 -1", "train 1 -1", "val 1 -1"}


def test_tables_sort_by_keyboard_and_filter(page: Any) -> None:
    group = page.locator("#slides [data-choose]").last
    assert group.locator("output").inner_text() == f"{CASES} of {CASES} rows"
    head = group.locator("thead th", has_text="Expected score")
    cells = group.locator("tbody tr:not([hidden]) td:nth-child(6)")
    for order, reverse in (("ascending", False), ("descending", True)):
        head.locator("button").focus()
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == order
        numbers = [float(text) for text in cells.all_inner_texts()]
        assert numbers == sorted(numbers, reverse=reverse)
    group.locator("select[data-by=score]").select_option("2+")
    assert group.locator("output").inner_text() == f"2 of {CASES} rows"
    group.locator("input[data-search]").fill("s6")
    assert group.locator("tbody tr:visible").count() == 1


def test_a_map_at_full_size(page: Any) -> None:
    figure = page.locator("figure.map").first
    button, picture = figure.locator("[data-widen]"), figure.locator(".picture").first
    beside = page.locator("main").bounding_box()["width"]
    for pressed in ("true", "false"):
        button.focus()
        page.keyboard.press("Enter")
        assert button.get_attribute("aria-pressed") == pressed
        assert (picture.bounding_box()["width"] > beside) == (pressed == "true")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_light_dark_and_print(page: Any) -> None:
    def ground() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    def axis() -> str:
        script = "[...Bokeh.documents[0].roots()[0].references()].find((m) => m.type === 'LinearAxis')"
        return page.evaluate(f"{script}.axis_label_text_color")

    light, light_axis = ground(), axis()
    page.locator("#theme").click()
    assert (ground() != light, axis() != light_axis) == (True, True)
    assert page.locator("#theme").get_attribute("aria-pressed") == "true"
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / "report-dark.png")
    page.emulate_media(media="print")
    assert ground() == "rgb(255, 255, 255)"
    assert page.locator("#chart-roc").is_hidden()
    assert page.locator("#chart-roc ~ img").is_visible()
    assert page.locator(".controls").first.is_hidden()
    page.emulate_media(media="screen", color_scheme="dark")
    page.locator("#theme").click()
    assert ground() == light
    page.screenshot(path=SCREENSHOTS / "report-light.png")
