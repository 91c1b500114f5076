"""A document as one HTML file that needs nothing else: no network, no framework, style and script within.

The page says so itself: its Content-Security-Policy allows the one style and the one script that are in it, by their hashes,
and images that are part of it. Anything else that got into the page would not run.
"""

from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from importlib.resources import files

from paring import __version__
from paring.report.document import Album, Block, Code, Document, Facts, Figure, Picture, Points, Section, Table
from paring.report.figures import render_album, render_figure, render_picture
from paring.report.limits import MOST_BYTES, Limits
from paring.report.markup import Markup, element, joined
from paring.report.plot import REFERENCE
from paring.report.record import ReportError
from paring.report.tables import render_table, slug_of

GENERATOR = "paring report"
STYLES, SCRIPTS = ("page.css",), ("tables.js", "figures.js")


def render(document: Document, most_bytes: int = MOST_BYTES) -> bytes:
    """The page, UTF-8.

    Long tables and lines are cut until it has at most ``most_bytes``; what was cut is said on the page.

    Raises:
        ReportError: even a little of each table is too much.
    """
    limits = Limits()
    while True:
        page = _page(document, limits).encode("utf-8", "replace")
        if len(page) <= most_bytes:
            return page
        if limits == limits.halved():
            raise ReportError(f"the page of {document.title!r} would have {len(page):,} bytes; expected at most {most_bytes:,}")
        limits = limits.halved()


def _page(document: Document, limits: Limits) -> str:
    style, script = _own(STYLES), _own(SCRIPTS)
    allowed = f"style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:"
    policy = f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
    head = element(
        "head",
        None,
        element("meta", {"charset": "utf-8"}),
        element("meta", {"http-equiv": "Content-Security-Policy", "content": policy}),
        element("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        element("meta", {"name": "generator", "content": f"{GENERATOR} {__version__}"}),
        element("meta", {"name": "color-scheme", "content": "light dark"}),
        element("title", None, f"{document.title} · {document.kind}"),
        element("style", None, style),
    )
    maker = _Maker(document, limits)
    body = element(
        "body", None, element("main", None, _header(document), *maker.sections(), _footer()), element("script", None, script)
    )
    return "<!doctype html>\n" + element("html", {"lang": "en"}, head, body) + "\n"


class _Maker:
    """Sections to HTML; numbers figures and tables, and gives a series the same style wherever it is drawn."""

    def __init__(self, document: Document, limits: Limits) -> None:
        self._document, self._limits, self._count = document, limits, Counter[str]()
        figures = [b for s in document.sections for b in s.blocks if isinstance(b, Figure)]
        series = [s for f in figures for p in f.panels for s in p.series]
        self._styles = dict.fromkeys((s.name for s in series), REFERENCE)
        names = dict.fromkeys(s.name for s in series if s.shape != "level")
        self._styles |= {name: i for i, name in enumerate(names)}

    def sections(self) -> list[Markup]:
        return [self._section(i, section) for i, section in enumerate(self._document.sections)]

    def _section(self, number: int, section: Section) -> Markup:
        name = f"section-{number}"
        heading = element("h2", {"id": name}, section.title)
        return element("section", {"aria-labelledby": name}, heading, *(self._block(block) for block in section.blocks))

    def _block(self, block: Block) -> Markup:
        self._count[type(block).__name__] += 1
        number = self._count[type(block).__name__]
        match block:
            case str():
                return element("p", None, block)
            case Points():
                return element("ul", {"class": "points"}, *(element("li", None, item) for item in block.items))
            case Facts():
                return _facts(block)
            case Code():
                return self._code(block)
            case Table():
                return render_table(block, slug_of(block.caption, number), self._limits)
            case Figure():
                return render_figure(block, self._styles, number, self._limits)
            case Album():
                return render_album(block)
            case Picture():
                return render_picture(block)

    def _code(self, code: Code) -> Markup:
        letters = self._limits.letters
        more = (
            element("p", {"class": "note"}, f"{letters:,} of {len(code.text):,} letters are shown.")
            if len(code.text) > letters
            else None
        )
        shown = element("pre", {"tabindex": 0}, element("code", None, code.text[:letters]))
        return joined(element("p", {"class": "caption"}, code.caption), shown, more)


def _header(document: Document) -> Markup:
    stats = [
        element("div", {"class": "stat"}, element("dt", None, what), element("dd", None, value))
        for value, what in document.stats
    ]
    gaps = [element("li", None, gap) for gap in document.gaps]
    return element(
        "header",
        None,
        element("p", {"class": "kind"}, document.kind),
        element("h1", None, document.title),
        element("p", {"class": "lead"}, document.lead),
        element("dl", {"class": "stats"}, *stats) if stats else None,
        _gaps(gaps) if gaps else None,
        _contents(document.sections),
    )


def _gaps(gaps: Sequence[Markup]) -> Markup:
    heading = element("h2", {"id": "missing"}, "What is missing")
    return element("section", {"class": "gaps", "aria-labelledby": "missing"}, heading, element("ul", None, *gaps))


def _contents(sections: Sequence[Section]) -> Markup | None:
    if len(sections) < 3:
        return None
    links = [element("li", None, element("a", {"href": f"#section-{i}"}, s.title)) for i, s in enumerate(sections)]
    return element("nav", {"aria-label": "Contents"}, element("ol", None, *links))


def _facts(facts: Facts) -> Markup:
    rows = [element("div", None, element("dt", None, name), element("dd", None, value)) for name, value in facts.pairs]
    return element("dl", {"class": "facts"}, *rows)


def _footer() -> Markup:
    return element(
        "footer",
        None,
        element("p", None, f"Written by paring {__version__} from the files of the run. This page loads nothing."),
    )


def _own(names: Sequence[str]) -> Markup:
    """Files of this package, to stand in the page as they are."""
    return Markup("\n".join(files("paring.report").joinpath(name).read_text("utf-8") for name in names))


def _hash(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"
