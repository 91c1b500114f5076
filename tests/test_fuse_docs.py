"""The table of methods is the registry's; the example runs."""

import re
from pathlib import Path

from paring.fuse.registry import METHODS
from paring.fuse.table import markdown

PAGE = (Path(__file__).parent.parent / "docs" / "fuse.md").read_text()


def test_table():
    table = PAGE.split("<!-- written by: python -m paring.fuse.table -->\n")[1].split("<!-- end -->")[0]
    assert table == markdown(), "run: python -m paring.fuse.table"
    assert table.count("\n") == len(METHODS) + 2


def test_example():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    names = {}
    exec(code, names)
    assert names["merged"].shape == (64, 64)
