"""``paring report``: see ``paring.report``."""

import argparse
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Adds the command; loads nothing."""
    parser = subparsers.add_parser(
        "report",
        help="one HTML page that shows a run: tables, figures, configuration, bytes and times",
        description="Makes one self-contained HTML page of the folder of a run (tune, slim --report, slim --bank, transfer "
        "--report, fuse, probe, demo, or a folder of deltas). The page loads nothing and can be sent to anyone; of paths it "
        "has the last part (but a merge's configuration as it stands).",
    )
    parser.add_argument("folder", metavar="DIR", help="what the run wrote")
    parser.add_argument("--out", metavar="FILE", help="the page (DIR/report.html); an older page there is replaced")
    parser.set_defaults(run=_run, needs_torch=False)


def _run(arguments: argparse.Namespace) -> int:
    from paring.report import write_report

    out = write_report(arguments.folder, arguments.out)
    print(f"Wrote {out}: {out.stat().st_size:,} bytes, a page to open in a browser")
    return 0
