"""What Prometheus fetches of the runs: gauges with the name of the run."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from launcher.board.watcher import Watcher

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
            state.add_metric([run.name, summary.get("state", "waiting")], 1.0)
            for name, value in run.prometheus_values().items():
                families[name].add_metric([run.name, summary.get("training_stage") or ""], value)
        yield state
        yield from families.values()


def render_metrics(watcher: Watcher) -> bytes:
    """All gauges in the text format of Prometheus."""
    registry = CollectorRegistry()
    registry.register(RunsCollector(watcher))
    return generate_latest(registry)
