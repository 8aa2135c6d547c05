"""Runs that are harmed in every way, compared with one that was not; what was found is printed as a table."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pytest
from runs import Victim, write_recipe
from small_runs import write_shards

STEPS = 24


@dataclass(frozen=True)
class Finding:
    fault: str
    detected_s: float | None
    lost_steps: int
    recovered: bool


FINDINGS: list[Finding] = []


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="session")
def make_victim(shards, tmp_path_factory) -> Callable[..., Victim]:
    def make(steps: int = STEPS, **cluster) -> Victim:
        folder = tmp_path_factory.mktemp("victim")
        return Victim(write_recipe(folder / "recipe.yaml", shards, steps, **cluster), folder / "run")

    return make


@pytest.fixture(scope="session")
def undisturbed(make_victim) -> Victim:
    victim = make_victim()
    victim.start()
    victim.finish()
    return victim


@pytest.fixture
def record() -> Callable[..., None]:
    """Takes what became of one fault, and prints its line."""

    def add(fault: str, detected_s: float | None, lost_steps: int, recovered: bool) -> None:
        FINDINGS.append(Finding(fault, detected_s, lost_steps, recovered))
        detected = "at once" if detected_s is None else f"after {detected_s:.1f} s"
        print(f"{fault}: detected {detected}, {lost_steps} steps lost, {'' if recovered else 'NOT '}recovered")

    return add


def pytest_terminal_summary(terminalreporter) -> None:
    if not FINDINGS:
        return
    write = terminalreporter.write_line
    write("\n| fault | times | detected after, median and longest | steps lost, median and most | recovered |")
    write("|---|---:|---:|---:|---:|")
    for fault in dict.fromkeys(finding.fault for finding in FINDINGS):
        same = [finding for finding in FINDINGS if finding.fault == fault]
        times = [finding.detected_s for finding in same if finding.detected_s is not None]
        detected = f"{median(times):.1f} s, {max(times):.1f} s" if times else "at once"
        lost = [finding.lost_steps for finding in same]
        recovered = sum(finding.recovered for finding in same)
        write(f"| {fault} | {len(same)} | {detected} | {median(lost):g}, {max(lost)} | {recovered} of {len(same)} |")
