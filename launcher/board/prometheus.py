"""What Prometheus fetches of the runs: gauges with the name of the run."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from launcher.board.watcher import Watcher
from launcher.plain_text import printable

GAUGES = {
    "step": "Steps of the stage that a run is at",
    "loss": "Loss of the newest row",
    "audio_seconds_per_second": "Seconds of audio trained on per second",
    "goodput_ratio": "Share of the stage's wall time that is in the weights",
    "restarts": "Restarts of all stages",
    "seconds_since_checkpoint": "Age of the newest checkpoint",
}


class RunsCollector(Collector):
    """Reads what the watcher saw last."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def collect(self) -> Iterator[Metric]:
        families = {}
        for name, text in GAUGES.items():
            families[name] = GaugeMetricFamily(f"chorus_run_{name}", text, labels=["run", "stage"])
        state = GaugeMetricFamily("chorus_run_state", "1 for the state that a run is in", labels=["run", "state"])
        for run in list(self._watcher.runs.values()):
            summary = run.summary
            # A name in no UTF-8 would cost the gauges of all runs.
            name = printable(run.name)
            stage = printable(summary.get("training_stage") or "")
            state.add_metric([name, printable(summary.get("state", "waiting"))], 1.0)
            for gauge, value in run.prometheus_values().items():
                families[gauge].add_metric([name, stage], value)
        yield state
        yield from families.values()


def render_metrics(watcher: Watcher) -> bytes:
    """All gauges in the text format of Prometheus."""
    registry = CollectorRegistry()
    registry.register(RunsCollector(watcher))
    return generate_latest(registry)
