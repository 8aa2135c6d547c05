"""`chorus compare`: the models of finished runs side by side, with intervals, as a page of Markdown."""

import argparse
import json
from pathlib import Path

from launcher.monitoring.status import open_run


def compare(options: argparse.Namespace) -> int:
    """Write the page and its pictures, and print their paths."""
    runs = [open_run(run) for run in options.runs]
    # These import jiwer and matplotlib, which no other command should wait for.
    from launcher.comparison.model_results import read_comparison
    from launcher.comparison.page import write_comparisons

    comparisons = [read_comparison(run) for run in runs]
    run_dirs = [run.path for run in runs]
    out = Path(options.out).expanduser()
    written = write_comparisons(comparisons, run_dirs, out)

    paths = [str(path) for path in written]
    if options.json:
        print(json.dumps({"written": paths}))
    else:
        print("\n".join(paths))
    return 0
