"""What to choose before a run, and what to be warned of: a DeepSpeed configuration per stage and one expert-parallel
size, from numbers alone.

Warnings are of what would run and disappoint; what cannot run at all is refused by `launcher.recipe.checks`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.planning.communication import crosses_hosts

# A fitting choice leaves this share of the memory free: allocators do not give back all that is freed, and utterances
# vary.
SPARE = 0.1
# A step that sends for more of its time than this is better off with fewer processes or larger micro-batches.
MOST_COMMUNICATION = 0.3
# With fewer frames an expert's matrix products are too thin to be fast.
LEAST_FRAMES_PER_EXPERT = 32
# A shorter micro-batch computes for less time than it takes to launch its operations.
LEAST_MICRO_BATCH_S = 0.005


@dataclass(frozen=True)
class Choice:
    """A configuration and expert-parallel size that a stage may have, and what it costs one process per step."""

    deepspeed: str
    zero_stage: int
    expert_parallel: int
    needed_bytes: int
    communication_s: float


@dataclass(frozen=True)
class StageNumbers:
    """A training stage as the recipe has it (`chosen`), and the choices that it has.

    - `available_bytes`: the memory of each process; None where it is unknown.
    - `activations_known`: whether `needed_bytes` of the choices include activations.
    - `compute_s`: the computation of one process in a step.
    - `experts`: experts of a block, 0 without; `frames_per_expert`: frames of a micro-batch for each of them.
    - `accumulation`: micro-batches per process and step.
    - `steps_of_audio`: how often the corpus fills the lanes; None before there is a corpus.
    """

    name: str
    chosen: Choice
    choices: tuple[Choice, ...]
    available_bytes: int | None
    activations_known: bool
    compute_s: float
    experts: int
    frames_per_expert: float
    accumulation: int
    steps_of_audio: float | None


@dataclass(frozen=True)
class StageWarning:
    """`kind` is for programs, `text` for people."""

    stage: str
    kind: str
    text: str


@dataclass(frozen=True)
class Proposal:
    """What a stage should have. `fits` is False when nothing does, and then it is what needs least."""

    deepspeed: str
    expert_parallel: int
    fits: bool
    deepspeed_reason: str
    expert_parallel_reason: str


def fits(choice: Choice, available_bytes: int | None) -> bool:
    """Whether a choice leaves the spare part free; where nothing is known of the memory all do."""
    return available_bytes is None or choice.needed_bytes <= available_bytes * (1 - SPARE)


def communication_share(stage: StageNumbers) -> float:
    """The share of a step that its process sends, as if communication and computation never overlapped."""
    return stage.chosen.communication_s / (stage.chosen.communication_s + stage.compute_s)


# --- proposals ---------------------------------------------------------------------------------------------------


def propose(stages: Sequence[StageNumbers]) -> dict[str, Proposal]:
    """A choice for each stage; stages with experts have one expert-parallel size, as a recipe has.

    It is the one that sends least among those that fit, of equals the recipe's, then the one that needs less memory.
    ZeRO 0 is taken only where nothing else fits: it tells no gradient norm.
    """
    with_experts = [stage for stage in stages if stage.experts]

    def size_cost(size: int) -> tuple[float, ...]:
        missing_bytes = 0
        communication_s = 0
        changed_stages = 0
        for stage in with_experts:
            best = _best_choice(stage, size)
            communication_s += best.communication_s
            if not fits(best, stage.available_bytes):
                missing_bytes += best.needed_bytes
            if size != stage.chosen.expert_parallel:
                changed_stages += 1
        return missing_bytes, communication_s, changed_stages, size

    common_size = 1
    if with_experts:
        common_sizes = _expert_parallel_sizes(with_experts[0])
        for stage in with_experts:
            common_sizes &= _expert_parallel_sizes(stage)
        common_size = min(common_sizes, key=size_cost)

    proposals = {}
    for stage in stages:
        size = common_size if stage.experts else 1
        best = _best_choice(stage, size)
        proposals[stage.name] = Proposal(
            deepspeed=best.deepspeed,
            expert_parallel=size,
            fits=fits(best, stage.available_bytes),
            deepspeed_reason=_deepspeed_reason(stage, best),
            expert_parallel_reason=_expert_parallel_reason(stage, best),
        )
    return proposals


def _expert_parallel_sizes(stage: StageNumbers) -> set[int]:
    return {choice.expert_parallel for choice in stage.choices}


def _fitting(stage: StageNumbers, choices: Sequence[Choice]) -> list[Choice]:
    return [choice for choice in choices if fits(choice, stage.available_bytes)]


def _least_bytes(choices: Sequence[Choice]) -> int:
    return min(choice.needed_bytes for choice in choices)


def _preference(stage: StageNumbers, choice: Choice) -> tuple[float, ...]:
    """A key to sort a stage's choices by, the best first."""
    if not fits(choice, stage.available_bytes):
        return (1, choice.needed_bytes)
    return (
        0,
        # ZeRO 0 tells no gradient norm.
        choice.zero_stage == 0,
        choice.communication_s,
        choice.deepspeed != stage.chosen.deepspeed,
        choice.needed_bytes,
        choice.zero_stage,
    )


def _best_choice(stage: StageNumbers, expert_parallel: int) -> Choice:
    """The best of a stage's choices with this expert-parallel size."""
    same_size = [choice for choice in stage.choices if choice.expert_parallel == expert_parallel]
    return min(same_size, key=lambda choice: _preference(stage, choice))


def _deepspeed_reason(stage: StageNumbers, best: Choice) -> str:
    needed = _gibibytes(best.needed_bytes)
    if not fits(best, stage.available_bytes):
        return f"nothing fits; {best.deepspeed} needs least, {needed}"
    if best.zero_stage == 0:
        return f"it needs {needed}, and no other stage fits"

    quicker = []
    slower = []
    for choice in stage.choices:
        # ZeRO 0 is no alternative: it sends least, and is still the last resort.
        if choice.expert_parallel != best.expert_parallel or choice.zero_stage in (0, best.zero_stage):
            continue
        if choice.communication_s < best.communication_s:
            quicker.append(choice)
        elif choice.communication_s > best.communication_s:
            slower.append(choice)

    if quicker:
        least = _gibibytes(_least_bytes(quicker))
        return f"it needs {needed}; what sends less needs {least}, which does not fit"
    if slower:
        return f"of the stages that fit it sends least ({best.communication_s:.3g} s a step)"
    if best.deepspeed == stage.chosen.deepspeed:
        return "no stage sends less, and the recipe has it"
    return f"of the stages that send equally much it needs least ({needed})"


def _expert_parallel_reason(stage: StageNumbers, best: Choice) -> str:
    if not stage.experts:
        return "the stage has no experts"
    other_sizes = _expert_parallel_sizes(stage) - {best.expert_parallel}
    if not other_sizes:
        return "no other size divides processes and experts"

    others = [_best_choice(stage, size) for size in sorted(other_sizes)]
    fitting = _fitting(stage, others)
    if not fitting:
        return f"with other sizes it needs {_gibibytes(_least_bytes(others))} or more, which does not fit"
    other = min(fitting, key=lambda choice: choice.communication_s)
    return (
        f"a step sends for {best.communication_s:.3g} s, with {other.expert_parallel} it would for "
        f"{other.communication_s:.3g} s"
    )


# --- warnings ----------------------------------------------------------------------------------------------------


def warnings(stage: StageNumbers, hosts: Sequence[int]) -> list[StageWarning]:
    """What would disappoint in a stage as the recipe has it; `hosts` are the processes of each host."""
    chosen = stage.chosen
    texts = {}
    if not fits(chosen, stage.available_bytes):
        texts["does_not_fit"] = _memory_text(stage)

    if len(hosts) > 1 and chosen.expert_parallel > 1 and crosses_hosts(chosen.expert_parallel, hosts):
        within = []
        for size in sorted(_expert_parallel_sizes(stage)):
            if not crosses_hosts(size, hosts):
                within.append(str(size))
        texts["exchange_crosses_hosts"] = (
            f"Experts are spread over {chosen.expert_parallel} processes, which are not on one host, so every layer's "
            f"frames cross the network. Expert parallelism {' or '.join(within)} stays within a host."
        )

    share = communication_share(stage)
    if share > MOST_COMMUNICATION:
        texts["communication"] = (
            f"A step would send for {chosen.communication_s:.3g} s beside {stage.compute_s:.3g} s of computation, "
            f"{share:.0%} of it. Take fewer processes, or a larger batches.seconds."
        )

    if stage.steps_of_audio is not None and stage.steps_of_audio < 1:
        texts["lanes_stay_empty"] = (
            f"The corpus fills {stage.steps_of_audio:.0%} of the lanes of one step, so some processes idle. Take "
            "fewer lanes and processes, or a smaller batches.seconds."
        )

    micro_batch_s = stage.compute_s / stage.accumulation
    if micro_batch_s < LEAST_MICRO_BATCH_S:
        texts["micro_batch_too_small"] = (
            f"A micro-batch computes for about {1000 * micro_batch_s:.2g} ms, less than it takes to start its "
            "operations. Make batches.seconds larger, and batches.lanes fewer."
        )

    if stage.experts and stage.frames_per_expert < LEAST_FRAMES_PER_EXPERT:
        texts["too_few_frames_per_expert"] = (
            f"An expert gets about {stage.frames_per_expert:.0f} frames of a micro-batch. Make batches.seconds larger, "
            "or take fewer experts."
        )
    return [StageWarning(stage.name, kind, text) for kind, text in texts.items()]


def _memory_text(stage: StageNumbers) -> str:
    """What the chosen configuration lacks, and what would fit."""
    assert stage.available_bytes is not None
    needed = _gibibytes(stage.chosen.needed_bytes)
    if not stage.activations_known:
        needed += " without activations, which are unknown"
    available = _gibibytes(stage.available_bytes)
    text = f"A process needs {needed}, and has {available}, of which {SPARE:.0%} should stay free."

    fitting = _fitting(stage, stage.choices)
    if not fitting:
        return (
            f"{text} No configuration in ds_configs/ fits: lower batches.seconds, set "
            "model.encoder.activation_checkpointing, or take more processes."
        )
    best = min(fitting, key=lambda choice: _preference(stage, choice))
    return (
        f"{text} {best.deepspeed} with expert parallelism {best.expert_parallel} would fit: "
        f"{_gibibytes(best.needed_bytes)}."
    )


def _gibibytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.2f} GiB"
