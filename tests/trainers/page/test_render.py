"""report.html: complete without a network, readable to everyone, and true to the files of the sweep."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.pages import Page
from tests.predictions import CASES, write_scores, write_sweep
from trainers.findings import find
from trainers.page import words
from trainers.page.render import render, write_page
from trainers.page.sheet import with_half
from trainers.page.sources import Sources, read_sources
from trainers.results import write_csv

EVIL = "</script><script>alert('x')</script>&\"<b>"
CSS = Path(__file__).parents[3] / "trainers" / "page" / "style.css"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_sweep(tmp_path_factory.mktemp("page"), {"alexnet-random": 0.0, EVIL: 2.0})
    runs = pq.read_table(folder / "runs.parquet").to_pylist()
    lost = {**runs[-1], "run_id": "lost", "selected": False, "train_loss": None, "val_loss": None, "best": False}
    pq.write_table(pa.Table.from_pylist([*runs, {**lost, "reason": "loss is <nan>"}]), folder / "runs.parquet")
    splits = [{"slide_id": f"s{k}", "case_id": f"c{k}", "her2_score": k % 4, "label": k % 4,
               "split": "test", "fold": ""} for k in range(CASES)]  # fmt: skip
    write_csv(folder / "splits.csv", splits)
    environment = {
        "left_out": {"s9": "the cohort gives no <her2_score>"},
        "seconds": 3725.0,
        "packages": {"torch": "2.9"},
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "experiment.toml").write_text(
        '[data]\ncohort = "c.csv"\nstore = "s"\nembedders = ["a", "b"]\nviews = 8\n'
    )
    return folder


@pytest.fixture(scope="module")
def sources(sweep: Path) -> Sources:
    return read_sources(sweep, find(sweep))


@pytest.fixture(scope="module")
def full(sweep: Path, sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """The same sweep with scores and maps."""
    folder = tmp_path_factory.mktemp("full") / "sweep"
    shutil.copytree(sweep, folder)
    write_scores(folder, EVIL)
    return read_sources(folder, sources.found)


@pytest.fixture(scope="module")
def page(full: Sources) -> Page:
    return Page(render(full))


def test_nothing_is_fetched(page: Page) -> None:
    policy = next(
        e for e in page.all("meta") if e.attributes.get("http-equiv", "").lower() == "content-security-policy"
    )
    assert str(policy.attributes["content"]).startswith("default-src 'none';")
    assert page.all("link") == page.all("iframe") == page.all("object") == []
    for element in page.elements:
        for name in ("src", "href", "data", "srcset", "action", "poster"):
            value = element.attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (element.name, value[:80])
    for style in page.all("style"):
        assert not re.search(r"@import|url\(|//", style.text)
    head, data, bokeh, own = page.all("script")
    assert bokeh.text.strip().startswith("/* BEGIN bokeh.min.js */")
    assert "sourceMappingURL" not in page.html
    for script in (head, data, own):
        assert set(re.findall(r"https?://[\w./-]*", script.text)) <= {"http://www.w3.org/2000/svg"}
    assert "mathjax.min.js" not in page.html.lower()


def test_readable_to_everyone(page: Page) -> None:
    assert page.all("html")[0].attributes["lang"] == "en"
    levels = [int(e.name[1]) for e in page.elements if re.fullmatch("h[1-6]", e.name)]
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in zip([0, *levels], levels, strict=False))
    for name in ("header", "nav", "main", "footer"):
        assert len(page.all(name)) == 1
    ids = page.ids()
    assert len(set(ids)) == len(ids)
    links = [str(e.attributes["href"]) for e in page.all("a")]
    assert links[0] == "#main"
    assert {link[1:] for link in links} <= set(ids)
    assert {e.attributes["aria-labelledby"] for e in page.all("section")} <= set(ids)
    for picture in page.all("img"):
        assert picture.attributes["alt"]
    tables = page.all("table")
    assert len(tables) == len(page.all("caption")) > 10
    assert all(e.text.strip() for e in page.all("caption"))
    assert {e.attributes["scope"] for e in page.all("th")} == {"col", "row", "colgroup", "rowgroup"}
    for name in ("select", "input"):
        assert all("label" in e.around for e in page.all(name))


def test_names_are_data(page: Page) -> None:
    assert len(page.all("script")) == 4
    assert page.all("b") == []
    assert any(cell.text == EVIL for cell in page.all("th", within="tbody"))
    charts = json.loads(page.all("script")[1].text)["charts"]
    assert charts["roc"]["embedders"] == [EVIL, "alexnet-random"]


def test_the_same_sweep_is_the_same_page(full: Sources, page: Page) -> None:
    path = write_page(full.folder, full.found)
    assert path.read_text(encoding="utf-8") == page.html
    assert path.stat().st_size < 4_000_000


def test_numbers_are_those_of_the_sweep(sources: Sources, page: Page) -> None:
    cells = [e.text for e in page.all("td")]
    for row in sources.table2:
        for metric in ("precision", "recall", "f1", "auc"):
            assert with_half(row[metric], row[f"{metric}_ci95"]) in cells
    for level in sources.found.fixed.values():
        value, drawn = level.values["auc"], level.bootstrap["auc"]
        assert drawn is not None
        assert f"{value:.2f} ({drawn.low:.2f}–{drawn.high:.2f})" in cells
    for one in sources.confusions:
        for i, j in ((0, 0), (2, 1)):
            assert f"{one.counts[i, j]:,} ({100 * one.shares[i, j]:.0f} %)" in cells
    assert "1 h 02 min" in cells


def test_scores_can_be_sorted_by_number_and_chosen_by_score(page: Page) -> None:
    rows = [e for e in page.all("tr", within="section") if e.attributes.get("data-f-score")]
    assert len(rows) == 2 * CASES
    assert {e.attributes["data-f-score"] for e in rows} == {"0", "1+", "2+", "3+"}
    orders = {e.attributes.get("data-order") for e in page.all("td") if e.text == "0.00012"}
    assert orders == {"0.000123"}


def test_the_best_embedder_comes_first(full: Sources, tmp_path: Path) -> None:
    folder = shutil.copytree(full.folder, tmp_path / "sweep")
    rows = [{"embedder": e, "bags": "1", "auc": "0.5"} for e in ("elsewhere", "alexnet-random", EVIL)]
    write_csv(folder / "auc_by_bags.csv", rows)
    order = [row["embedder"] for row in read_sources(folder, full.found).auc_by_bags]
    assert order == [EVIL, "alexnet-random", "elsewhere"]


def test_maps(page: Page) -> None:
    maps = [e for e in page.all("figure") if "map" in str(e.attributes.get("class"))]
    assert len(maps) == CASES
    assert sum("The picture is not in this page" in e.text for e in maps) == 1
    assert "AUC 0.54 in the mean over 8 slides, 0.50 to 0.57" in " ".join(page.html.split())
    shown = [e for e in page.all("img", within="figure") if "attention-weighted" in str(e.attributes["alt"])]
    assert len(shown) == CASES - 1
    assert all(e.attributes["loading"] == "lazy" for e in shown)
    assert all("IHC" in str(e.attributes["alt"]) for e in shown)
    widen = [e for e in page.all("button") if "data-widen" in e.attributes]
    assert len(widen) == CASES - 1
    assert {(e.attributes["type"], e.attributes["aria-pressed"]) for e in widen} == {("button", "false")}
    captions = [e for e in page.all("figcaption") if "patches in" in e.text]
    assert len(captions) == CASES
    assert all("by this fold alone predicted 2+, expected score 0." in e.text for e in captions)


def test_shades_are_named_as_they_are_on_a_dark_page_too(page: Page) -> None:
    assert "the stronger the shade, the better" in page.html
    assert "darker" not in page.html


def test_what_is_missing_says_how_it_is_made(sources: Sources, page: Page) -> None:
    how = "<code>her2cache report SWEEP_DIR</code>"
    bare = render(sources)
    assert bare.count(how) == 4
    assert page.html.count(how) == 0
    Page(bare)


def test_failures_and_deviations(page: Page) -> None:
    text = " ".join(page.all("main")[0].text.split())
    assert "Runs that failed: 1." in text
    assert "loss is <nan>" in text
    assert "the cohort gives no <her2_score>" in text
    assert "8 stored views of it" in text
    assert "finite views, where the paper augments afresh at every step" in text


def test_slides_of_the_test_set_that_are_missing_are_named(full: Sources, page: Page) -> None:
    assert "Slides of the fixed test set" not in page.all("section")[-2].text
    fewer = replace(full, maps=full.maps[2:], scores=[*full.scores, {**full.scores[0], "embedder": "other"}])
    (failures,) = (e for e in Page(render(fewer)).all("section") if e.attributes["id"] == "failures")
    assert "not scored by every embedder: s1, s2, s3, s4, s5, s6, s7." in failures.text
    assert "without an attention map: s0, s1." in failures.text


def test_notes_come_before_any_number(full: Sources) -> None:
    assert full.synthetic
    results = [{**row, "fraction": 0.1, "n_left_out": 2} for row in full.found.results]
    screened = replace(full, found=replace(full.found, results=results))
    html = render(screened)
    note, sentence = html.index("A screening: only 10 %"), html.index(words.SYNTHETIC)
    assert sentence < note < html.index("AUC", html.index("<main")) < html.index("<table")


def test_a_headline_needs_nested_cross_validation(sources: Sources) -> None:
    fixed = sources.found.fixed
    assert next(words.headline(sources)) == words.NO_HEADLINE
    nested = replace(sources, found=replace(sources.found, nested=fixed, outer_folds=3))
    said = next(words.headline(nested))
    assert said.startswith(
        f"Nested cross-validation, pooled by case: the best of 2 embedders is {EVIL}, with a macro AUC"
    )
    assert said.endswith("so this is above chance. Being chosen on these very cases flatters it.")
    assert "The headline: nested cross-validation, by case" in render(nested)
    chance = {"alexnet-random": fixed["alexnet-random"]}
    lost = replace(sources, found=replace(sources.found, nested=chance, outer_folds=3, without_headline={EVIL: "why"}))
    said = next(words.headline(lost))
    assert said.startswith("Nested cross-validation, pooled by case: alexnet-random has a macro AUC of ")
    assert said.endswith("so this is within what chance alone reaches.")
    assert "is missing: why." in render(lost)


def test_limits_name_the_cases(full: Sources) -> None:
    first, *_, last = words.limits(full)
    assert "n = 8 cases (2 of 0, 2 of 1+, 2 of 2+, 2 of 3+)" in first
    assert last == f"{words.SYNTHETIC} n = 8 cases in all."


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * d for d in colour[1:])
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
              for c in (int(digits[k : k + 2], 16) / 255 for k in (0, 2, 4))]  # fmt: skip
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_contrast_of_every_theme() -> None:
    """4.5 for text, 3 for what frames (WCAG 2.2, 1.4.3 and 1.4.11)."""
    themes = re.findall(r"\{\s*(--paper:[^}]*)\}", CSS.read_text(encoding="utf-8"))
    assert len(themes) == 4  # light, dark by preference, dark by choice, print
    pairs: list[tuple[str, str, float]] = [
        *((text, ground, 4.5) for text in ("ink", "soft") for ground in ("paper", "note", "wash")),
        ("ink", "heat", 4.5), ("link", "paper", 4.5), ("mark", "paper", 3.0),
    ]  # fmt: skip
    for theme in themes:
        colours: dict[str, Any] = dict(re.findall(r"--([\w-]+): (#[0-9a-f]+);", theme))
        for text, ground, least in pairs:
            light, dark = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= least, (text, ground, theme)
