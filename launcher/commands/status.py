"""`chorus status`: how far a run is, from its folder alone."""

import argparse
import json
from typing import Any

from launcher.formatting import duration
from launcher.monitoring.status import open_run, run_status
from launcher.plain_text import WIDEST_TABLE, make_console, printable, table_cell
from launcher.remote_run import is_run_url


def status(options: argparse.Namespace) -> int:
    claim = None
    if is_run_url(options.run):
        # fsspec takes long to import.
        from launcher.remote_run.reading import claim_of

        claim = claim_of(options.run)
    run = run_status(open_run(options.run), claim)
    if options.json:
        print(json.dumps(run, ensure_ascii=False, indent=2))
        return 0

    # After JSON is printed, which needs none of it.
    from rich.table import Table

    state = "not running"
    if run["process"]:
        state = f"running, process {run['process']}"
    if claim:
        # Whether it is still there, a second look would tell.
        state = f"claimed by process {claim['process']} on {printable(claim['host'])}"
    print(f"{run['run']}, recipe {run['recipe']}: {state}")
    if "store" in run:
        print(_describe_uploads(run["store"]))
    table = Table(box=None, pad_edge=False)
    for heading in ("stage", "status"):
        table.add_column(heading, no_wrap=True)
    for heading in ("step", "loss", "audio s/s", "left", "saved at", "restarts", "useful"):
        table.add_column(heading, justify="right", no_wrap=True)
    for stage in run["stages"]:
        cells = [table_cell(stage["name"]), table_cell(stage["status"])]
        # Only training stages have steps.
        if "steps" in stage:
            useful = None
            if stage["goodput"] is not None:
                useful = stage["goodput"]["useful"]
            left = ""
            if stage["eta_s"] is not None:
                left = duration(stage["eta_s"])
            cells += [
                f"{stage['step']}/{stage['steps']}",
                _format_known(stage["loss"], ".3f"),
                _format_known(stage["audio_s_per_s"], ".1f"),
                left,
                _format_known(stage["checkpoint_step"], "d"),
                str(stage["restarts"]),
                _format_known(useful, ".1%"),
            ]
        table.add_row(*cells)
    # On a narrow terminal too, names are not cut.
    make_console(soft_wrap=True, width=WIDEST_TABLE).print(table)
    return 0


def _describe_uploads(store: dict[str, Any]) -> str:
    """How far a run is uploaded to its store, in a line."""
    line = f"store {store['url']}: everything is there"
    if store["missing"]:
        line = f"store {store['url']}: {store['num_missing']} to upload, such as {store['missing'][0]}"
    if store["problem"]:
        line += f"; uploads fail, for {duration(store['failing_s'] or 0.0)}: {store['problem']}"
    return printable(line)


def _format_known(value: float | None, spec: str) -> str:
    if value is None:
        return ""
    return format(value, spec)
