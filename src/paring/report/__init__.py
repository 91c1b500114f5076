"""``paring report``: one HTML page from the folder of a run.

readers/ (a folder -> ``Document``) -> document (sections, tables, figures) -> page (HTML, with figures and tables), in this
direction alone. No number is made here but sums, shares and means of those in the folder.
"""

from paring.report.record import ReportError
from paring.report.write import PAGE, write_report

__all__ = ["PAGE", "ReportError", "write_report"]
