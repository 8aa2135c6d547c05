"""The report of a run: `report.html`, one self-contained page, and the table of results behind it."""

from pathlib import Path

from launcher.report.results import ResultRow, ResultsTable, results_table

__all__ = ["ResultRow", "ResultsTable", "results_table", "write_report"]


def write_report(run_dir: Path) -> Path:
    """Writes `report.html` into a run folder, whatever state the run is in, and returns its path.

    Raises ConfigError when there is no such folder and OSError when the page cannot be written.
    """
    # The page draws with matplotlib, which whoever only wants the table should not wait for.
    from launcher.report.page import write_page

    return write_page(run_dir)
