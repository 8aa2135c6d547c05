"""`chorus compare`: the models of finished runs side by side, with intervals, as a page of Markdown."""

import argparse
import json
from pathlib import Path

from launcher.monitoring.status import open_run


def compare(options: argparse.Namespace) -> int:
    """Write the page and its pictures, and print their paths."""
    # These import jiwer and matplotlib, which no other command should wait for.
    from launcher.comparison.model_results import read_comparison
    from launcher.comparison.page import write_comparisons

    comparisons = []
    run_dirs = []
    for path in options.runs:
        run = open_run(path)
        comparisons.append(read_comparison(run))
        run_dirs.append(run.path)
    out = Path(options.out).expanduser()
    written = write_comparisons(comparisons, run_dirs, out)

    paths = list(map(str, written))
    if options.json:
        print(json.dumps({"written": paths}))
    else:
        print("\n".join(paths))
    return 0
