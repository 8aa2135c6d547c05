"""The report of a run: `report.html`, one self-contained page, and the table of results behind it."""

from launcher.report.page import write_report
from launcher.report.results import ResultRow, ResultsTable, results_table

__all__ = ["ResultRow", "ResultsTable", "results_table", "write_report"]
