"""What a recipe may say about a SLURM job."""

import re

from pydantic import BaseModel, Field, field_validator

# Names of accounts and partitions, several partitions joined by commas.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,:@+-]*")
# What sbatch reads in another way than it stands there: the end of a line, quotes, a comment.
UNQUOTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\"'\\#]")
OPTION = re.compile(r"--([a-z][a-z-]*)(?:=(.*))?")


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

    @field_validator("partition", "account")
    @classmethod
    def _is_a_name(cls, value: str | None) -> str | None:
        if value is not None and not NAME.fullmatch(value):
            raise ValueError(f"{value!r} is no name that SLURM has; write letters, digits and _ . , : @ + -")
        return value

    @field_validator("options")
    @classmethod
    def _fits_on_a_line(cls, options: tuple[str, ...]) -> tuple[str, ...]:
        for option in options:
            if not OPTION.fullmatch(option) or UNQUOTABLE.search(option):
                raise ValueError(
                    f"{option!r} is no option for a line of a batch script; write --NAME or --NAME=VALUE, without "
                    "quotes, backslashes, # and line ends"
                )
        return options
