"""`chorus compare`: the models of finished runs side by side, as pages of Markdown or HTML, or as records."""

import argparse
import json
from pathlib import Path

from launcher.errors import ConfigError
from launcher.monitoring.status import open_run

HTML_SUFFIXES = (".html", ".htm")


def compare(options: argparse.Namespace) -> int:
    """Write the pages and their pictures, the records, or both, and print their paths."""
    # These import jiwer and matplotlib, which no other command should wait for.
    from launcher.comparison.html_page import write_html
    from launcher.comparison.intervals import ModelIntervals
    from launcher.comparison.model_results import compare_trainings, read_trainings
    from launcher.comparison.page import write_comparisons
    from launcher.comparison.records import is_records_folder, read_records, write_records
    from launcher.sweep.results import read_sweep_trainings
    from launcher.sweep.trials import is_sweep_folder

    outs = [Path(out).expanduser() for out in options.out]
    if not outs and options.records is None:
        raise ConfigError("Nothing to write: give --out FILE for a page, --records DIR for records, or both.")
    comparisons = []
    sources = []
    written = []
    for name in options.runs:
        path = Path(name).expanduser()
        if is_records_folder(path):
            # Absolute, because `docs/results/.` has a name too.
            path = path.absolute()
            title = path.name
            evaluated, trainings = read_records(path)
        elif is_sweep_folder(path):
            path = path.absolute()
            title, evaluated, trainings = read_sweep_trainings(path)
        else:
            run = open_run(name)
            path = run.path
            title, evaluated, trainings = read_trainings(run)
        comparisons.append(ModelIntervals(compare_trainings(title, evaluated, trainings)))
        sources.append(path)
        if options.records is not None:
            written += write_records(Path(options.records).expanduser(), evaluated, trainings)
    for out in outs:
        if out.suffix.lower() in HTML_SUFFIXES:
            written += write_html(comparisons, sources, out)
        else:
            written += write_comparisons(comparisons, sources, out)

    # Runs that go into one folder of records write its list of models each.
    paths = list(dict.fromkeys(map(str, written)))
    if options.json:
        print(json.dumps({"written": paths}))
    else:
        print("\n".join(paths))
    return 0
