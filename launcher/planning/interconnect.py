"""How fast cards send to each other: the kinds of connection that `chorus plan --interconnect` knows, and others.

Rates are of one direction, and those that a collective gets: EFFICIENCY of what the makers state.
"""

from dataclasses import dataclass

from launcher.errors import ConfigError

# Of a stated rate, what a large all-reduce gets. Measured ones lie between 0.75 and 0.9 where nothing else is sent.
EFFICIENCY = 0.8
GIGA = 1e9
WITHIN_LATENCY_S = 5e-6
# Between nodes where nothing is known of it.
BETWEEN_LATENCY_S = 3e-5


@dataclass(frozen=True)
class Interconnect:
    """Bytes per s that a card sends within its node and a node to others, and s until a message arrives."""

    within_bytes_per_s: float
    between_bytes_per_s: float
    within_latency_s: float
    between_latency_s: float


def _stated(within_gb_per_s: float, between_gb_per_s: float, latency_us: float) -> Interconnect:
    """A connection by the rates that its makers state, with the latency between nodes."""
    return Interconnect(
        within_bytes_per_s=EFFICIENCY * GIGA * within_gb_per_s,
        between_bytes_per_s=EFFICIENCY * GIGA * between_gb_per_s,
        within_latency_s=WITHIN_LATENCY_S,
        between_latency_s=1e-6 * latency_us,
    )


# NVIDIA's data sheets: NVLink 4 and eight NDR adapters of 400 Gbit/s (DGX H100), NVLink 3 and eight HDR ones of 200
# (DGX A100), PCIe 4 x16 with one adapter. Latencies are of the order that NCCL has.
INTERCONNECTS = {
    "nvlink4-ndr": _stated(450, 400, 15),
    "nvlink3-hdr": _stated(300, 200, 15),
    "pcie4-100gbit": _stated(32, 12.5, 30),
    "pcie4-25gbit": _stated(32, 3.125, 30),
    "pcie4-10gbit": _stated(32, 1.25, 50),
}


def read_interconnect(text: str) -> Interconnect:
    """Return the connection of a name, or of measured rates WITHIN:BETWEEN in GB/s, such as 360:320; ConfigError for
    anything else."""
    if text in INTERCONNECTS:
        return INTERCONNECTS[text]
    rates = []
    for part in text.split(":"):
        try:
            rates.append(float(part))
        except ValueError:
            rates.append(0.0)
    # `nan` and `inf` are floats too.
    if len(rates) != 2 or not all(0 < rate < 1e6 for rate in rates):
        raise ConfigError(
            f"--interconnect is {text!r}. Give one of {', '.join(INTERCONNECTS)}, or two measured rates in GB/s of one "
            "direction, what a card sends within its node and what a node sends to others, such as 360:320."
        )
    within, between = rates
    return Interconnect(within * GIGA, between * GIGA, WITHIN_LATENCY_S, BETWEEN_LATENCY_S)
