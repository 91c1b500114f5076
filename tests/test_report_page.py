"""The page of a report in a browser: it says nothing to the console, asks for nothing, sorts, toggles and shows values."""

import csv
import io
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chromium import Page, chromium, found
from paring.report.document import Axis, Column, Document, Figure, Panel, Section, Series, Table
from paring.report.page import render
from paring.report.tables import as_csv
from test_report import HOSTILE, everywhere

pytestmark = pytest.mark.skipif(found() is None, reason="needs a browser: apt-get install chromium")

ROWS = [["beta", 2.5], ["alpha", 10.0], ["gamma 10", None], ["gamma 9", -1.0], ["delta", float("nan")]]
TABLE = Table(
    "things", [Column("name"), Column("value", "score")], ROWS, foot=[["total", 99.0]], marked=frozenset([4]), mark="chosen"
)
LINES = [
    Series("one", [(0, 0.5), (10, 0.75), (20, 0.625)]),
    Series("two", [(0, 0.1), (10, 0.2), (20, 0.3)]),
    Series("limit", [(0, 0.9)], "level"),
]
DOTS = [Series("one", [(1, 1.0), (2, 2.0)], "dots", labels=("first", "second")), Series("two", [(3, 1.5)], "dots")]
PANELS = [
    Panel("left", Axis("step", "count"), Axis("score"), LINES),
    Panel("right", Axis("step", "count"), Axis("score"), LINES),
]
DOCUMENT = Document(
    "paring test",
    "a run",
    "what was done",
    [
        Section("Tables", [TABLE]),
        Section("Lines", [Figure("lines", PANELS)]),
        Section("Dots", [Figure("dots", [Panel("", Axis("cost"), Axis("gain"), DOTS)])]),
    ],
    [("0.95", "test accuracy")],
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as page:
        yield page


@pytest.fixture
def opened(browser: Page, tmp_path: Path) -> Iterator[Page]:
    """The document above; nothing may have gone to the console when the test is done."""
    show(browser, DOCUMENT, tmp_path)
    yield browser
    assert browser.errors == []


def show(browser: Page, document: Document, at: Path, **screen: bool | int) -> None:
    path = at / "page.html"
    path.write_bytes(render(document))
    browser.errors.clear()
    browser.requests.clear()
    browser.open(path, **screen)  # type: ignore[arg-type]


def names(page: Page) -> list[str]:
    return page.evaluate(
        "[...document.querySelectorAll('#table-1-things tbody th')].map(e => e.textContent.replace(/^\u25b8 /, ''))"
    )


def shown(page: Page, figure: int) -> list[str]:
    """Names of the series that can be seen in a figure."""
    return page.evaluate(
        f"[...document.querySelectorAll('#figure-{figure} svg.plot g.series')].filter(g => g.getClientRects().length)"
        ".map(g => g.dataset.series)"
    )


def tip(page: Page) -> str | None:
    return page.evaluate("document.querySelector('.tip:not(.off)')?.innerText.replace(/\\s+/g, ' ') ?? null")


def beside(page: Page) -> str:
    """On which side of the line through the points their values are; never off the figure."""
    at = page.evaluate(
        "(() => { const b = (e) => document.querySelector(e).getBoundingClientRect(); const tip = b('.tip:not(.off)'),"
        "cross = b('.cross'), figure = b('#figure-1'); return [tip.left, tip.right, tip.top, cross.left, cross.bottom,"
        "figure.left, figure.right]; })()"
    )
    left, right, top, line, foot, first, last = at
    assert first - 1 <= left and right <= last + 1
    return "right" if left > line else "left" if right < line else "below" if top > foot else "over it"


def test_nothing_is_said_and_nothing_asked_for(opened: Page, tmp_path: Path) -> None:
    assert opened.requests == [(tmp_path / "page.html").as_uri()]
    assert opened.evaluate("document.compatMode") == "CSS1Compat"


def test_sorting(opened: Page) -> None:
    given = [row[0] for row in ROWS]
    head = "#table-1-things thead th:nth-child({}) button"
    by_value = ["alpha", "beta", "gamma 9", "gamma 10", "delta"]
    for order, state in (
        (by_value, "descending"),
        (["gamma 9", "beta", "alpha", "gamma 10", "delta"], "ascending"),
        (given, None),
    ):
        opened.click(head.format(2))
        assert names(opened) == order  # what is no number comes last in either order
        assert (
            opened.evaluate("document.querySelector('#table-1-things thead th:nth-child(2)').getAttribute('aria-sort')")
            == state
        )
    opened.click(head.format(1))
    assert names(opened) == ["alpha", "beta", "delta", "gamma 9", "gamma 10"]
    assert opened.evaluate("document.querySelector('#table-1-things tfoot').innerText.split(/\\s+/)[0]") == "total"
    opened.evaluate(f"document.querySelector({json.dumps(head.format(2))}).focus()")
    opened.key("Enter")
    assert names(opened) == by_value
    assert opened.evaluate("document.querySelectorAll('[aria-sort]').length") == 1


def test_switching_series_off_and_on(opened: Page) -> None:
    assert shown(opened, 1) == ["one", "two", "limit"] * 2
    entry = "#figure-1 .legend li[data-series='one'] button"
    opened.click(entry)
    assert shown(opened, 1) == ["two", "limit"] * 2
    assert shown(opened, 2).count("one") == 1  # each figure by itself
    assert opened.evaluate(f"document.querySelector({json.dumps(entry)}).getAttribute('aria-pressed')") == "false"
    opened.key("Enter")  # the button has the focus
    assert shown(opened, 1) == ["one", "two", "limit"] * 2


def test_values_under_the_pointer(opened: Page) -> None:
    left, top, width, height = opened.box("#figure-1 .panel:nth-child(2) .wide svg.plot")
    opened.move(left + width * 0.55, top + height / 2)
    assert tip(opened) == "step: 10 one 0.75 two 0.2 limit 0.9"
    assert beside(opened) == "right"
    opened.move(left + width * 0.95, top + height / 2)
    assert beside(opened) == "left"  # the figure ends there
    opened.click("#figure-1 .legend li[data-series='two'] button")
    assert tip(opened) is None  # the pointer has left
    left, top, width, height = opened.box("#figure-1 .panel:nth-child(2) .wide svg.plot")
    opened.move(left + width - 5, top + height / 2)
    assert tip(opened) == "step: 20 one 0.625 limit 0.9"


def test_values_of_dots(opened: Page) -> None:
    left, top, width, height = opened.box("#figure-2 .wide svg.plot")
    opened.move(left + width * 0.5, top + 1)
    assert tip(opened) == "cost: 2 (second) one 2"
    opened.move(left + width * 0.95, top + height / 2)
    assert tip(opened) == "cost: 3 two 1.5"


def test_values_of_points_at_one_place(browser: Page, tmp_path: Path) -> None:
    """Of dots that lie on one another each is told; beside a line those near the pointer."""
    dots = [Series(name, [(1, 2.0)], "dots") for name in ("one", "two")] + [Series("far", [(3, 1.0)], "dots")]
    faint = [Series("mean", [(1, 1.0), (2, 3.0)]), Series("seeds", [(2, 2.0)], "dots", ("seed 7",), faint=True)]
    figures = [Figure(name, [Panel("", Axis("x"), Axis("y"), of)]) for name, of in (("dots", dots), ("line", faint))]
    show(browser, Document("paring test", "a run", "", [Section("one", figures)]), tmp_path)
    left, top, width, height = browser.box("#figure-1 .wide svg.plot")
    browser.move(left + width * 0.1, top + height / 2)
    assert tip(browser) == "x: 1 one 2 two 2"
    at = browser.evaluate(
        "(() => { const p = document.querySelector('#figure-2 .wide svg.plot'); p.scrollIntoView({block: 'center',"
        "behavior: 'instant'}); const b = p.getBoundingClientRect(), s = b.width / p.viewBox.baseVal.width;"
        "const [x, y] = JSON.parse(p.querySelector('g.faint').dataset.points)[0]; return [b.x + x * s, b.y + y * s]; })()"
    )
    browser.move(*at)
    assert tip(browser) == "x: 2 mean 3 seeds, seed 7 2"
    browser.move(at[0], at[1] - 30)
    assert tip(browser) == "x: 2 mean 3"
    assert browser.errors == []


def test_values_under_a_finger_stay_until_another_tap(browser: Page, tmp_path: Path) -> None:
    show(browser, DOCUMENT, tmp_path, width=390, height=800, phone=True)
    left, top, width, height = browser.box("#figure-2 .narrow svg.plot")
    tap(browser, left + width * 0.5, top + height / 2)
    assert tip(browser) == "cost: 2 (second) one 2"
    tap(browser, left + width * 0.5, top - 60)
    assert tip(browser) is None
    assert browser.errors == []


def tap(page: Page, x: float, y: float) -> None:
    page.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
    page.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])


def test_all_entries_of_a_long_legend_at_once(browser: Page, tmp_path: Path) -> None:
    many = [Series(f"s{i}", [(i, 1.0)], "dots") for i in range(12)]
    figure = Figure("f", [Panel("", Axis("x"), Axis("y"), many)])
    show(browser, Document("paring test", "a run", "", [Section("one", [figure])]), tmp_path)
    assert len(shown(browser, 1)) == 12
    browser.click("#figure-1 .legend .all")
    assert shown(browser, 1) == []
    browser.click("#figure-1 .legend li[data-series='s3'] button")
    assert shown(browser, 1) == ["s3"]
    browser.click("#figure-1 .legend .all")
    assert len(shown(browser, 1)) == 12
    show(browser, DOCUMENT, tmp_path)
    assert browser.evaluate("document.querySelector('.legend .all')") is None


def test_values_by_keys(opened: Page) -> None:
    opened.evaluate("document.querySelector('#figure-1 .wide svg.plot').focus()")
    said = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "End", "ArrowRight", "Home"):
        opened.key(key)
        said.append((tip(opened) or "").split(" one")[0])
    assert said == ["step: 0", "step: 10", "step: 0", "step: 20", "step: 20", "step: 0"]
    opened.key("Escape")
    assert tip(opened) is None
    opened.key("ArrowRight")
    opened.key("Tab")
    assert tip(opened) is None


def test_a_download(opened: Page, tmp_path: Path) -> None:
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    opened.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
    opened.click("a[download='table-1-things.csv']")
    end = time.monotonic() + 30
    while not (downloads / "table-1-things.csv").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert (downloads / "table-1-things.csv").read_bytes().decode() == as_csv(TABLE)
    assert next(csv.reader(io.StringIO(as_csv(TABLE)))) == ["name", "value"]


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark(browser: Page, tmp_path: Path, dark: bool) -> None:
    show(browser, DOCUMENT, tmp_path, dark=dark)
    colours = [browser.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color")]
    paper, ink = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
    assert paper < 150 and ink > 600 if dark else paper > 700 and ink < 150
    assert browser.errors == []


def test_no_word_is_too_long(browser: Page, tmp_path: Path) -> None:
    show(browser, everywhere("w" * 200), tmp_path, width=320, height=800, phone=True)
    assert browser.evaluate("document.documentElement.scrollWidth") == 320
    over = "e => e.getBoundingClientRect().right > 321 && !e.closest('.scroll, pre, svg')"
    assert browser.evaluate(f"[...document.querySelectorAll('main *')].filter({over}).map(e => e.tagName)") == []


@pytest.mark.parametrize("width", [320, 390, 768])
def test_a_narrow_screen_needs_no_scrolling_sideways(browser: Page, tmp_path: Path, width: int) -> None:
    wide = Table("wide", [Column(f"a column with number {i}", "count") for i in range(30)], [[10**9] * 30] * 2)
    named = Figure("f", [Panel("", Axis("x"), Axis("y"), [Series("a method whose name is long enough", LINES[0].points)])])
    blocks = [wide, named, *(b for s in DOCUMENT.sections for b in s.blocks)]
    document = Document("paring test", "a" * 200, "b" * 200, [Section("one", blocks)])
    show(browser, document, tmp_path, width=width, height=800, phone=True)
    assert browser.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
    inside = browser.evaluate("[...document.querySelectorAll('.scroll')].map(e => e.scrollWidth > e.clientWidth)")
    assert inside[0] is True  # a wide table scrolls by itself
    seen = "[...document.querySelectorAll('svg.plot')].filter(e => e.getClientRects().length)"
    assert browser.evaluate(f"{seen}.map(e => e.viewBox.baseVal.width)")[-1] == 310  # the wide drawing is not shown
    left, top, plot, height = browser.box("#figure-1 .narrow svg.plot")
    browser.move(left + plot * 0.55, top + height / 2)
    assert beside(browser) in (("below",) if width < 400 else ("right", "left"))
    letters = browser.evaluate(f"{seen}.map(e => 12 * e.getBoundingClientRect().width / e.viewBox.baseVal.width)")
    assert min(letters) >= 10 and max(letters) <= 17
    assert browser.errors == []


def test_hostile_text_does_nothing(browser: Page, tmp_path: Path) -> None:
    show(browser, everywhere(HOSTILE), tmp_path)
    assert browser.evaluate("typeof window.hacked") == "undefined"
    assert browser.evaluate("document.querySelector('h1').textContent") == HOSTILE
    browser.evaluate("[...document.querySelectorAll('svg.plot')].find(e => e.getClientRects().length).focus()")
    browser.key("ArrowRight")
    assert browser.evaluate("document.querySelector('.tip:not(.off) li span').textContent") == HOSTILE
    browser.click(".legend button")
    assert browser.evaluate("typeof window.hacked") == "undefined" and browser.errors == []
    assert len(browser.requests) == 1


def test_what_got_into_the_page_would_not_run(browser: Page, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_bytes(
        render(DOCUMENT).replace(b"<h1>", b"<script>window.hacked = 1</script><img src='https://example.org/x.png'><h1>")
    )
    browser.errors.clear()
    browser.requests.clear()
    browser.open(path)
    assert browser.evaluate("typeof window.hacked") == "undefined"
    assert len([e for e in browser.errors if "Content Security Policy" in e]) == 2
    assert browser.requests == [path.as_uri()]
    assert names(browser) == [row[0] for row in ROWS]  # and the page works


def test_on_paper(browser: Page, tmp_path: Path) -> None:
    show(browser, DOCUMENT, tmp_path, dark=True)
    browser.printed(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF-")
    browser.call("Emulation.setEmulatedMedia", media="print")
    try:
        assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert (
            browser.evaluate("[...document.querySelectorAll('a.csv, nav')].filter(e => e.getClientRects().length).length") == 0
        )
        assert browser.evaluate("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")
    assert browser.errors == []
