"""What a recipe may say about a SLURM job."""

from pydantic import BaseModel, Field


class SlurmConfig(BaseModel, frozen=True, extra="forbid"):
    """The job that `chorus run --launcher slurm` submits."""

    nodes: int = Field(default=1, ge=1, le=65_536, description="nodes of the job; they share cluster.processes evenly")
    time_limit_min: int = Field(
        default=1440, ge=2, le=10**7, description="time limit, in minutes; at its end the run saves and is queued again"
    )
    partition: str | None = Field(default=None, description="partition; none: the cluster's default")
    account: str | None = Field(default=None, description="account to charge; none: the user's default")
    cpus_per_process: int = Field(default=4, ge=1, le=65_536, description="processor cores for each training process")
    gpus_per_node: int | None = Field(
        default=None, ge=1, le=1024, description="GPUs of each node; none: train on processors"
    )
    # Longer than cluster.stop_deadline_s, which ClusterConfig checks: the run saves in this time.
    signal_s: int = Field(
        default=180,
        ge=60,
        le=65_535,
        description="how long before the time limit the run is asked to save, in s; SLURM may be a minute early",
    )
    options: tuple[str, ...] = Field(
        default=(), description="further sbatch options, such as --constraint=a100; not --array"
    )
