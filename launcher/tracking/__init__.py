"""What a training stage tells the outside: `metrics.jsonl`, the truth, and its mirror in Weights & Biases."""

from launcher.tracking.config import TrackingConfig, WandbConfig
from launcher.tracking.metrics_log import MetricsLog, read_metrics
from launcher.tracking.mirror import choose_mode
from launcher.tracking.tracker import Tracker

__all__ = ["MetricsLog", "Tracker", "TrackingConfig", "WandbConfig", "choose_mode", "read_metrics"]
