"""The page of a report, from documents made here: escaping, CSV, limits, numbers that are none, colours."""

import base64
import csv
import io
import json
import math
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from paring.report.document import (
    Album,
    Axis,
    Code,
    Column,
    Document,
    Facts,
    Figure,
    Panel,
    Picture,
    Points,
    Section,
    Series,
    Strip,
    Table,
)
from paring.report.limits import Limits
from paring.report.markup import element, escaped
from paring.report.numbers import NOT_FINITE, NOT_THERE, duration, ratio, raw, size, text
from paring.report.page import render
from paring.report.plot import draw, shape_of, thinned, ticks
from paring.report.readers.parts import name_of
from paring.report.record import Record, ReportError, read_record
from paring.report.scale import scale
from paring.report.tables import as_csv
from report_task import Seen

HOSTILE = "</title></style></script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>\"'&amp;`"


def document(*blocks: Any, title: str = "a run") -> Document:
    return Document("paring test", title, "what was done", [Section("one", blocks)])


def line(points: Any, **more: Any) -> Figure:
    return Figure("a figure", [Panel("", Axis("x"), Axis("y"), [Series("a", points, **more)])])


def everywhere(what: str) -> Document:
    """A text in every place that a document has."""
    series = [Series(what, [(1, 0.5), (2, 0.7)], labels=(what, what)), Series(what + " across", [(1, 0.6)], "level")]
    blocks = [
        what,
        Points([what]),
        Facts([(what, what)]),
        Code(what, what),
        Table(
            what, [Column(what), Column("n", "count", bar=True)], [[what, 3]], [[what, 4]], False, frozenset([0]), what, what
        ),
        Figure(what, [Panel(what, Axis(what), Axis(what), series)] * 2, what),
        Album(what, [(what, what, [Strip(what, [[[0.5]]], [what])])]),
    ]
    return Document(what, what, what, [Section(what, blocks)] * 3, [(what, what)], [what])


def test_no_text_becomes_markup() -> None:
    plain, hostile = (Seen(render(everywhere(w)).decode()) for w in ("harmless", HOSTILE))
    assert {tag: len(of) for tag, of in plain.tags.items()} == {tag: len(of) for tag, of in hostile.tags.items()}
    assert len(hostile.tags["script"]) == 1 and "img" not in hostile.tags
    assert hostile.text.count(HOSTILE) == plain.text.count("harmless") > 30
    names = [t["data-series"] for t in hostile.tags["g"] if "data-series" in t]
    assert set(names) == {HOSTILE, HOSTILE + " across"}
    points = [json.loads(t["data-points"] or "") for t in hostile.tags["g"] if "data-points" in t]
    assert points[0][0][4] == HOSTILE


def test_what_no_reader_should_get() -> None:
    seen = Seen(render(everywhere("a\x00b\x1bc\u202ed\ud800e")).decode("utf-8"))
    assert "a\ufffdb\ufffdc\ufffdd\ufffde" in seen.text and not re.search("[\x00\x1b\u202e]", seen.text)
    assert escaped('<a b="c">&') == "&lt;a b=&quot;c&quot;&gt;&amp;"
    assert (
        element("p", {"id": 'x"', "hidden": True, "lang": None}, "<", element("b")) == '<p id="x&quot;" hidden>&lt;<b></b></p>'
    )
    with pytest.raises(AssertionError):
        element("p", {"onclick": "x"})


def test_a_picture_is_an_image_whose_scripts_do_not_run() -> None:
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'><script>window.hacked = 1</script></svg>"
    seen = Seen(render(document(Picture("drawn", svg))).decode())
    (image,) = seen.tags["img"]
    assert base64.b64decode((image["src"] or "").partition(",")[2]) == svg and len(seen.tags["script"]) == 1


def test_the_policy_names_what_is_in_the_page() -> None:
    page = render(document()).decode()
    policy = Seen(page).tags["meta"][1]["content"] or ""
    from hashlib import sha256

    for tag in ("style", "script"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert f"{tag}-src 'sha256-{base64.b64encode(sha256(content.encode()).digest()).decode()}'" in policy
    for forbidden in ("http", "@import", "url(", "innerHTML", "eval(", "document.write", "fetch("):
        own = "".join(files("paring.report").joinpath(n).read_text() for n in ("page.css", "tables.js", "figures.js"))
        assert forbidden not in own.replace("http://www.w3.org/2000/svg", "")


def test_csv_has_every_digit_and_runs_nothing() -> None:
    rows = [["plain", 0.1 + 0.2], ['a "b", c\nd', math.nan], ["=1+1", -3], ["@x", None], ["-y", math.inf], ["7", 10**15]]
    table = Table("t", [Column("+name"), Column("n", "count")], rows, foot=[["total", 1]])
    read = list(csv.reader(io.StringIO(as_csv(table), newline="")))
    assert read[0] == ["'+name", "n"]
    assert [row[0] for row in read[1:]] == ["plain", 'a "b", c\nd', "'=1+1", "'@x", "'-y", "7", "total"]
    assert [row[1] for row in read[1:]] == ["0.30000000000000004", "nan", "-3", "", "inf", "1000000000000000", "1"]
    link = next(a for a in Seen(render(document(table)).decode()).tags["a"] if a.get("download"))
    assert link["download"] == "table-1-t.csv"
    assert base64.b64decode((link["href"] or "").partition(",")[2]).decode() == as_csv(table)


def test_numbers_that_are_none_are_said_and_not_drawn() -> None:
    points = [(0, 1.0), (1, math.nan), (2, None), (3, math.inf), (4, 2.0), (5, 1e300), (math.nan, 1.0), (6, 1.5)]
    for figure in (line(points), line(points, shape="dots"), line(points, shape="step"), line([(1, math.nan)]), line([])):
        page = render(document(figure)).decode()
        drawn = "".join(re.findall(r"<svg.*?</svg>", page))
        assert not re.search(r"\b(nan|inf|None)\b", drawn), figure
    path = next(
        t["d"] or ""
        for t in Seen(render(document(line(points))).decode()).tags["path"]
        if t.get("class") == "line d0" and len(t["d"] or "") > 9
    )
    assert path.count("M") == 3  # a line ends where a value is missing
    seen = Seen(
        render(document(Table("t", [Column("n", "score", bar=True)], [[math.nan], [None], [-math.inf], [0.5]]))).decode()
    )
    assert [row[0] for row in seen.table("t")[1:]] == [NOT_FINITE, NOT_THERE, NOT_FINITE, "0.5000"]
    widths = [t["width"] for t in seen.tags["rect"]]
    assert widths == ["100.0%"]


def test_a_log_axis_leaves_out_what_has_no_place() -> None:
    panel = Panel("", Axis("x", log=True), Axis("y"), [Series("a", [(0, 1.0), (-1, 1.0), (0.01, 1.0), (0.1, 2.0)])])
    seen = Seen(draw(panel, [panel], {"a": 0}, "said", 360, 270, 100))
    (group,) = (t for t in seen.tags["g"] if "data-points" in t)
    assert [p[2] for p in json.loads(group["data-points"] or "")] == ["0.01", "0.1"]


@pytest.mark.parametrize("high", [1e-12, 0.3, 1, 7, 99, 12345, 3e140])
@pytest.mark.parametrize("low", [0, -0.7, -1e5])
def test_ticks_are_round_and_few(low: float, high: float) -> None:
    s = scale(Axis("a"), [low, high], 0, 100, 5)
    assert s.low < low and s.high > high and 2 <= len(s.ticks) <= 6
    steps = {float(f"{b - a:.6g}") for a, b in zip(s.ticks, s.ticks[1:], strict=False)}
    assert len(steps) == 1 and f"{steps.pop():.0e}"[0] in "125"
    assert [round(s(t)) for t in (s.low, s.high)] == [0, 100]


def test_scales() -> None:
    within = scale(Axis("a", within=(0, 1)), [0.01, 0.99], 0, 1, 5)
    assert (within.low, within.high) == (0, 1)
    assert scale(Axis("a", within=(0, 1)), [0.5, 1.5], 0, 1, 5).high > 1.5  # a value that is there is shown
    same = scale(Axis("a"), [3.0, 3.0], 0, 1, 5)
    assert same.low < 3 < same.high and same.ticks
    log = scale(Axis("a", log=True), [1e3, 1e9], 0, 1, 4)
    assert log.ticks == (1e3, 1e5, 1e7, 1e9) and 0 < log(1e3) < log(1e6) < 1
    assert log(1e6) == pytest.approx(0.5)
    assert scale(Axis("a", ticks=(0.2, 0.4, 9.0)), [0.1, 0.5], 0, 1, 5).ticks == (0.2, 0.4)


def test_panels_share_axes_of_one_label() -> None:
    def panel(name: str, most: float, label: str) -> Panel:
        return Panel(name, Axis("x"), Axis(label, within=(0, None)), [Series("a", [(0, 0.0), (1, most)])])

    def heights(shared: bool, labels: tuple[str, str]) -> list[float]:
        figure = Figure("f", [panel("p", 1, labels[0]), panel("q", 10, labels[1])], shared=shared)
        groups = [t for t in Seen(render(document(figure)).decode()).tags["g"] if "data-points" in t]
        return [json.loads(t["data-points"] or "")[1][1] for t in groups[::2]]  # each is drawn narrow and wide

    same, apart, other = heights(True, ("y", "y")), heights(False, ("y", "y")), heights(True, ("y", "z"))
    assert same[0] > same[1] and apart[0] == apart[1] == other[0] == other[1]


def test_long_lines_keep_what_stands_out() -> None:
    points: list[tuple[float, float | None]] = [(i, 0.0) for i in range(10_000)]
    points[4321], points[8765] = (4321, 9.0), (8765, -9.0)
    kept = thinned(points, 300)
    assert len(kept) <= 301 and {0, 4321, 8765, 9999} <= set(kept)
    assert thinned(points[:300], 300) == list(range(300))


def test_a_large_run_has_a_page_of_at_most_the_size_asked_for() -> None:
    rows = [[f"row {i}", i / 7, "x" * 300] for i in range(120_000)]
    table = Table("long", [Column("name"), Column("n", "score"), Column("text")], rows)
    points = [(i, math.sin(i / 50)) for i in range(30_000)]
    figure = Figure("long", [Panel("", Axis("x"), Axis("y"), [Series(f"s{n}", points) for n in range(8)])])
    page = render(document(table, figure, Code("c", "y" * 3_000_000)))
    assert len(page) <= 5_000_000
    seen = Seen(page.decode())
    shown = len(seen.table("table-1")) - 1
    assert f"{shown:,} of 120,000 rows are shown" in seen.text and 1 <= shown < 1000
    assert re.search(r"Of lines of up to 30,000 points those are drawn that stand out, \d+ at most", seen.text)
    assert "of 3,000,000 letters are shown" in seen.text and re.search(r"The CSV has [\d,]+ of them", seen.text)
    with pytest.raises(ReportError, match="would have [0-9,]+ bytes; expected at most 9,000"):
        render(document(table), most_bytes=9_000)
    assert Limits(1, 1, 1, 1).halved() == Limits(1, 1, 1, 1)
    assert Limits().halved() == Limits(csv_rows=25_000)  # of what is not looked at first


def test_a_long_download_leaves_the_page_its_rows() -> None:
    rows = [[f"row {i}", i / 7, i / 3] for i in range(60_000)]
    tables = [Table(f"long {n}", [Column("name"), Column("a"), Column("b")], rows) for n in (1, 2)]
    seen = Seen(render(document(*tables)).decode())
    assert "500 of 60,000 rows are shown" in seen.text


def test_numbers_as_text() -> None:
    shown = [text(0.12345, f) for f in ("score", "share", "general", "count", "seconds", "ratio")]  # type: ignore[arg-type]
    assert [s.replace("\N{NO-BREAK SPACE}", " ") for s in shown] == ["0.1235", "12.3 %", "0.1235", "0.1", "0.1", "0.1"]
    assert [text(v, "count") for v in (0, 1234567, 1234.6, None, math.nan)] == [
        "0",
        "1,234,567",
        "1,235",
        NOT_THERE,
        NOT_FINITE,
    ]
    assert [size(v).replace("\N{NO-BREAK SPACE}", " ") for v in (0, 999, 1000, 1_350_000, 7.2e13)] == [
        "0 bytes",
        "999 bytes",
        "1 kB",
        "1.35 MB",
        "72 TB",
    ]
    times = [duration(v).replace("\N{NO-BREAK SPACE}", " ") for v in (0.25, 59.4, 59.6, 3600, 7385)]
    assert times == ["0.2 s", "59 s", "1 min 0 s", "1 h 0 min", "2 h 3 min"]
    assert [duration(v) for v in (math.nan, None, -1.0)] == [NOT_FINITE, NOT_THERE, "-1"]
    assert ratio(1, 0) is None and ratio(math.nan, 1) is None and ratio(1, 4) == 0.25
    assert [raw(v) for v in (None, "a", 3, 0.1, math.nan)] == ["", "a", "3", "0.1", "nan"]
    small = [text(v, "share").replace("\N{NO-BREAK SPACE}", " ") for v in (0.0, 4.5e-5, -0.00123, 0.0099, 0.00996, 0.5)]
    assert small == ["0.0 %", "0.0045 %", "-0.12 %", "0.99 %", "1.0 %", "50.0 %"]
    assert ticks((300, 20_000, 1.5e6), Axis("a", "count")) == ["300", "20k", "1.5M"]
    assert ticks((123_100, 123_200), Axis("a", "count")) == ["123,100", "123,200"]  # not 123k twice
    assert ticks((1_500_000.1, 1_500_000.2), Axis("a")) == ["1,500,000.1", "1,500,000.2"]
    assert ticks((0, 0.5, 0.975), Axis("a", "share")) == ["0%", "50%", "97.5%"]


def test_styles_differ_where_colours_may_not() -> None:
    """Green and red are one colour to some, blue and violet to others: such pairs have different dashes and marks."""
    assert len({(style % 10, shape_of(style)) for style in range(40)}) == 40
    assert all(shape_of(a) != shape_of(b) for a, b in ((2, 6), (0, 8), (3, 8), (1, 7), (4, 9)))


def test_names_of_points_meet_no_other() -> None:
    near = [Series(f"a method {i}", [(1 + i / 100, 1.0)], "dots") for i in range(30)]
    far = Series("far away", [(9.0, 5.0)], "dots")
    panel = Panel("", Axis("x"), Axis("y"), [*near, far])
    drawn = str(draw(panel, [panel], {s.name: i for i, s in enumerate(panel.series)}, "n", 900, 360, 100))
    named = re.findall(r'<text[^>]*class="name[^"]*"[^>]*>([^<]*)<', drawn)
    assert "far away" in named and 1 <= len(named) < 6
    levels = Panel("", Axis("x"), Axis("y"), [far, Series("one", [(0, 2.0)], "level"), Series("other", [(0, 3.0)], "level")])
    drawn = str(draw(levels, [levels], {"far away": 0, "one": -1, "other": 1}, "n", 900, 360, 100))
    assert re.findall(r'<text[^>]*class="name[^"]*"[^>]*>([^<]*)<', drawn) == ["far away", "one", "other"]


def test_numbers_of_panels_of_different_kinds_have_tables_of_their_own() -> None:
    x = Axis("share of the way", "share")
    same = [Panel(t, x, Axis(t, "score"), [Series("s", [(0.5, 0.75)])]) for t in ("tuned", "original")]
    other = Panel("k", Axis("layer", "count"), Axis("directions", "count"), [Series("s", [(3, 19.0)])])
    seen = Seen(render(document(Figure("f", [*same, other]))).decode())
    first, second = seen.table("figure-1-numbers"), seen.table("figure-1-numbers-2")
    assert first[0] == ["panel", "series", "share of the way", "value"]
    assert [row[2:] for row in first[1:]] == [["50.0\N{NO-BREAK SPACE}%", "0.7500"]] * 2
    assert second == [["panel", "series", "layer", "directions"], ["k", "s", "3", "19"]]


def test_of_paths_the_last_part() -> None:
    shown = [name_of(p) for p in ("/home/me/models/vit", "vit", "./vit/", "../../vit", "owner/model", "C:\\me\\vit", "/")]
    assert shown == ["vit", "vit", "vit", "vit", "owner/model", "vit", "/"]


def test_best_values_are_bold_and_chosen_rows_marked() -> None:
    columns = [Column("m"), Column("acc", "score", best="high"), Column("loss", "score", best="low")]
    table = Table(
        "t",
        columns,
        [["a", 0.9, 0.5], ["b", math.nan, 0.4], ["c", 0.8, 0.6]],
        [["whole", 0.99, 0.1]],
        marked=frozenset([2]),
        mark="chosen",
    )
    page = render(document(table)).decode()
    assert re.findall("<strong>(.*?)</strong>", page) == ["0.9000", "0.4000"]
    assert [row[0] for row in Seen(page).table("t")] == ["m", "a", "b", "▸ c", "whole"] and "▸ chosen." in Seen(page).text
    alike = Table("t", columns, [["a", 0.9, 0.5], ["b", 0.9, 0.4]])
    assert re.findall("<strong>(.*?)</strong>", render(document(alike)).decode()) == ["0.4000"]  # nothing is best of equals


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "is a list; expected an object"),
        ('{"a": ', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"a": "x"}', "'a' is text; expected a number"),
        ('{"a": true}', "'a' is true or false; expected a number"),
        ('{"b": 1}', "has no 'a'; it was written by another program, or is damaged"),
        ("\xff", "is not JSON"),
    ],
)
def test_records_are_not_trusted(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ReportError, match=re.escape(message)) as caught:
        read_record(path).number("a")
    assert str(path) in str(caught.value)


def test_what_a_record_gives() -> None:
    record = Record(
        {"n": None, "x": float("nan"), "big": 10**400, "p": [[1, None]], "l": ["a", 1], "d": {"e": 2}, "y": True}, "r"
    )
    assert math.isnan(record.number("n")) and math.isnan(record.number("x")) and record.number("big") == math.inf
    assert "n" not in record and "x" in record and record.maybe("gone") is None
    assert record.pairs("p")[0][0] == 1 and math.isnan(record.pairs("p")[0][1])
    assert dict(record.plain()) == {
        "x": "NaN",
        "big": str(10**400),
        "p": "[[1, null]]",
        "l": "a, 1",
        "d": '{"e": 2}',
        "y": "yes",
    }
    for call in (lambda: record.texts("l"), lambda: record.record("y"), lambda: record.records("l"), lambda: record.pairs("l")):
        with pytest.raises(ReportError, match="^r: "):
            call()


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    digits = colour.lstrip("#")
    digits = "".join(c * 2 for c in digits) if len(digits) == 3 else digits
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_colours_can_be_told_from_the_paper_in_light_dark_and_print() -> None:
    """4.5 for text (series, too: their names are written in their colours), by WCAG 2.2, 1.4.3."""
    css = files("paring.report").joinpath("page.css").read_text()
    schemes = [dict(re.findall(r"--(\w+): (#\w+);", block)) for block in re.findall(r":root \{(.*?)\}", css, re.DOTALL)]
    assert len(schemes) == 3 and all(len(s) == 16 for s in schemes)
    for scheme in schemes:
        for name, colour in scheme.items():
            for behind in ("paper", "wash") if name in ("ink", "quiet", "accent") else ("paper",):
                light, dark = sorted((luminance(colour), luminance(scheme[behind])), reverse=True)
                if name not in ("paper", "wash", "rule"):
                    assert (light + 0.05) / (dark + 0.05) >= 4.5, (name, colour, behind)
        assert len({scheme[f"s{i}"] for i in range(10)}) == 10
