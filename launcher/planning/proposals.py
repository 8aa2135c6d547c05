"""What to choose before a run, and what to be warned of: a DeepSpeed configuration per stage and one expert-parallel
size, from numbers alone.

Warnings are of what would run and disappoint; what cannot run at all is refused by `launcher.recipe.checks`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from launcher.planning.communication import crosses_hosts

# What stays free beside a fitting choice: allocators do not give back all that is freed, and utterances vary.
SPARE = 0.1
# A step that sends for more of its time than this is better off with fewer processes or larger micro-batches.
MOST_COMMUNICATION = 0.3
# Below so many frames an expert's products are too thin to be fast; below so many s work is shorter than its launch.
LEAST_FRAMES_PER_EXPERT, LEAST_MICRO_BATCH_S = 32, 0.005


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
    """A training stage as the recipe has it (`chosen`), and what else it may have.

    available_bytes for each process (none: unknown), whether activations are in what is needed, the computation of a
    step and process in s, experts of a block and frames that each gets of a micro-batch (0 without experts), micro-
    batches per process and step, and `steps_of_audio`, how often the corpus fills the lanes (none: not known yet).
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
class Warned:
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


def propose(stages: Sequence[StageNumbers]) -> dict[str, Proposal]:
    """A choice for each stage; stages with experts have one expert-parallel size, as a recipe has.

    It is the one that sends least among those that fit, of equals the recipe's, then the one that needs less memory.
    ZeRO 0 is taken only where nothing else fits: it tells no gradient norm.
    """
    with_experts = [stage for stage in stages if stage.experts]
    possible = [{choice.expert_parallel for choice in stage.choices} for stage in with_experts]
    sizes = sorted(set.intersection(*possible)) if possible else [1]

    def cost(size: int) -> tuple[float, ...]:
        best = [_best(stage, size) for stage in with_experts]
        pairs = zip(best, with_experts, strict=True)
        unfit = sum(b.needed_bytes for b, stage in pairs if not fits(b, stage.available_bytes))
        changed = sum(size != stage.chosen.expert_parallel for stage in with_experts)
        return unfit, sum(choice.communication_s for choice in best), changed, size

    size = min(sizes, key=cost)
    return {stage.name: _proposal(stage, size if stage.experts else 1) for stage in stages}


def _best(stage: StageNumbers, size: int) -> Choice:
    """The best of a stage's choices with this expert-parallel size."""
    return min((choice for choice in stage.choices if choice.expert_parallel == size), key=lambda c: _rank(stage, c))


def _rank(stage: StageNumbers, choice: Choice) -> tuple[float, ...]:
    if not fits(choice, stage.available_bytes):
        return (1, choice.needed_bytes)
    other = choice.deepspeed != stage.chosen.deepspeed
    return (0, choice.zero_stage == 0, choice.communication_s, other, choice.needed_bytes, choice.zero_stage)


def _proposal(stage: StageNumbers, size: int) -> Proposal:
    best = _best(stage, size)
    fitting = fits(best, stage.available_bytes)
    return Proposal(best.deepspeed, size, fitting, _why_zero(stage, best, fitting), _why_size(stage, best))


def _why_zero(stage: StageNumbers, best: Choice, fitting: bool) -> str:
    if not fitting:
        return f"nothing fits; {best.deepspeed} needs least, {shown(best.needed_bytes)}"
    if best.zero_stage == 0:
        return f"it needs {shown(best.needed_bytes)}, and no other stage fits"
    same = [
        c
        for c in stage.choices
        if c.expert_parallel == best.expert_parallel and c.zero_stage not in (0, best.zero_stage)
    ]
    quicker = [c for c in same if c.communication_s < best.communication_s]
    if quicker:
        least = min(c.needed_bytes for c in quicker)
        return f"it needs {shown(best.needed_bytes)}; what sends less needs {shown(least)}, which does not fit"
    if any(c.communication_s > best.communication_s for c in same):
        return f"of the stages that fit it sends least ({best.communication_s:.3g} s a step)"
    if best.deepspeed == stage.chosen.deepspeed:
        return "no stage sends less, and the recipe has it"
    return f"of the stages that send equally much it needs least ({shown(best.needed_bytes)})"


def _why_size(stage: StageNumbers, best: Choice) -> str:
    if not stage.experts:
        return "the stage has no experts"
    others = [
        _best(stage, size) for size in sorted({c.expert_parallel for c in stage.choices} - {best.expert_parallel})
    ]
    if not others:
        return "no other size divides processes and experts"
    fitting = [choice for choice in others if fits(choice, stage.available_bytes)]
    if not fitting:
        return f"with other sizes it needs {shown(min(c.needed_bytes for c in others))} or more, which does not fit"
    other = min(fitting, key=lambda choice: choice.communication_s)
    return (
        f"a step sends for {best.communication_s:.3g} s, with {other.expert_parallel} it would for "
        f"{other.communication_s:.3g} s"
    )


def warnings(stage: StageNumbers, hosts: Sequence[int]) -> list[Warned]:
    """What would disappoint in a stage as the recipe has it; `hosts` are the processes of each host."""
    checks = (_memory(stage), _crossing(stage, hosts), _sending(stage), *_too_small(stage))
    return [Warned(stage.name, kind, text) for kind, text in filter(None, checks)]


def _memory(stage: StageNumbers) -> tuple[str, str] | None:
    if stage.available_bytes is None or fits(stage.chosen, stage.available_bytes):
        return None
    fitting = [choice for choice in stage.choices if fits(choice, stage.available_bytes)]
    needed, available = shown(stage.chosen.needed_bytes), shown(stage.available_bytes)
    without = "" if stage.activations_known else " without activations, which are unknown"
    text = f"A process needs {needed}{without}, and has {available}, of which {SPARE:.0%} should stay free."
    if not fitting:
        return "does_not_fit", (
            f"{text} No configuration in ds_configs/ fits: lower batches.seconds, set "
            "model.encoder.activation_checkpointing, or take more processes."
        )
    best = min(fitting, key=lambda choice: _rank(stage, choice))
    return "does_not_fit", (
        f"{text} {best.deepspeed} with expert parallelism {best.expert_parallel} would fit: {shown(best.needed_bytes)}."
    )


def _crossing(stage: StageNumbers, hosts: Sequence[int]) -> tuple[str, str] | None:
    size = stage.chosen.expert_parallel
    if size == 1 or len(hosts) == 1 or not crosses_hosts(size, hosts):
        return None
    within = sorted({c.expert_parallel for c in stage.choices if not crosses_hosts(c.expert_parallel, hosts)})
    return "exchange_crosses_hosts", (
        f"Experts are spread over {size} processes, which are not on one host, so every layer's frames cross the "
        f"network. Expert parallelism {' or '.join(map(str, within))} stays within a host."
    )


def _sending(stage: StageNumbers) -> tuple[str, str] | None:
    sending, share = stage.chosen.communication_s, communication_share(stage)
    if share <= MOST_COMMUNICATION:
        return None
    return "communication", (
        f"A step would send for {sending:.3g} s beside {stage.compute_s:.3g} s of computation, {share:.0%} of it. Take "
        "fewer processes, or a larger batches.seconds."
    )


def communication_share(stage: StageNumbers) -> float:
    """The share of a step that its process sends, as if it did nothing beside."""
    return stage.chosen.communication_s / (stage.chosen.communication_s + stage.compute_s)


def _too_small(stage: StageNumbers) -> Iterable[tuple[str, str] | None]:
    if stage.steps_of_audio is not None and stage.steps_of_audio < 1:
        yield (
            "lanes_stay_empty",
            (
                f"The corpus fills {stage.steps_of_audio:.0%} of the lanes of one step, so some processes idle. Take "
                "fewer lanes and processes, or a smaller batches.seconds."
            ),
        )
    if stage.compute_s / stage.accumulation < LEAST_MICRO_BATCH_S:
        yield (
            "micro_batch_too_small",
            (
                f"A micro-batch computes for about {1000 * stage.compute_s / stage.accumulation:.2g} ms, less than it "
                "takes to start its operations. Make batches.seconds larger, and batches.lanes fewer."
            ),
        )
    if stage.experts and stage.frames_per_expert < LEAST_FRAMES_PER_EXPERT:
        yield (
            "too_few_frames_per_expert",
            (
                f"An expert gets about {stage.frames_per_expert:.0f} frames of a micro-batch. Make batches.seconds "
                "larger, or take fewer experts."
            ),
        )


def shown(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.2f} GiB"
