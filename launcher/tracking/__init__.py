"""What a stage records: `metrics.jsonl`, the truth, and copies of it in Weights & Biases and TensorBoard."""

from launcher.tracking.backend import Alert, Artifact, Sound, Table
from launcher.tracking.config import TrackingConfig, WandbConfig, check_tracking
from launcher.tracking.login import choose_mode, find_login
from launcher.tracking.metrics_log import EXPERT_LOAD, MetricsLog, expert_loads, read_last_rows, read_metrics
from launcher.tracking.tracker import Tracker

__all__ = [
    "EXPERT_LOAD",
    "Alert",
    "Artifact",
    "MetricsLog",
    "Sound",
    "Table",
    "Tracker",
    "TrackingConfig",
    "WandbConfig",
    "check_tracking",
    "choose_mode",
    "expert_loads",
    "find_login",
    "read_last_rows",
    "read_metrics",
]
