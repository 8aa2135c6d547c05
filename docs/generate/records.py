"""The page of what a run writes about itself: events and metrics. `tests/docs` compares both lists with the code."""

from docs.generate.markdown import cell, code, table

INTRODUCTION = """\
# Events and metrics

This page lists every event of `RUN/events.jsonl` and every key of `RUN/STAGE/metrics.jsonl`, for whoever reads them
with a program. It is written by `make reference`.

Both are files of JSON objects, one a line, that are only appended to. A last line that a kill cut short is to be
skipped. Readers should pass over keys and events that they do not know: later versions add some. Counts are of all
processes, times in seconds, `time` in seconds since 1970. Numbers that are not finite are `null`.
"""

STAGE = "`stage`"
STEP = "`stage`, `step`"

# Name: its fields beside `time` and `event`, what happened.
EVENTS = {
    "stage_started": (f"{STAGE}, `reason`", "a stage began, and why it was not done already"),
    "stage_done": (STAGE, "a stage ended with all that it had to do"),
    "stage_stopped": (STAGE, "a stage was asked to stop, and saved"),
    "stage_failed": (STAGE, "a stage ended in an error"),
    "stage_extended": (f"{STAGE}, `from_step`, `changes`", "a stage goes on under other steps or another optimizer"),
    "stage_set_aside": (f"{STAGE}, `folder`, `reason`", "work of other settings was moved out of the way"),
    "stage_taken_up": (f"{STAGE}, `folder`", "work that was set aside is gone on with"),
    "processes_started": (f"{STAGE}, `processes`, `hosts`", "an attempt began; `hosts` has the ranks of each"),
    "leftovers_ended": (f"{STAGE}, `processes`", "processes of a launcher that is gone were ended"),
    "process_lost": (f"{STAGE}, `rank`, `reason`, `checkpoint_step`", "a process died or fell silent"),
    "host_out_of_reach": (
        f"{STAGE}, `rank`, `reason`, `checkpoint_step`",
        "an attempt failed before it ran",
    ),
    "restart": (f"{STAGE}, `restart`, `from_step`", "the stage is started again from a checkpoint"),
    "plan_opened": (
        "`split`, `steps_per_epoch`, `utterances`, `excluded`",
        "a split's batches are known; `excluded` has counts by reason",
    ),
    "initialized": (f"{STAGE}, and what was taken over", "a model started from another one's weights"),
    "frozen": (f"{STAGE}, and which parameters", "parts of a model do not learn"),
    "memory_tried": (f"{STEP}, `micro_batches`, `seconds`", "the largest micro-batches fit into memory"),
    "out_of_memory": (
        f"{STEP}, `lane`, `utterances`, `seconds`, `parts`",
        "a micro-batch did not fit, and is split into so many parts from now on",
    ),
    "training_started": (STEP, "the first step after a start is next"),
    "training_ended": (STEP, "the last step of an attempt is done"),
    "update_skipped": (f"{STEP}, `reason`, `utterances`", "loss or gradient was not finite: no weight changed"),
    "rolled_back": (f"{STEP}, `to_step`", "too many updates were skipped: weights of an earlier step were loaded"),
    "loss_spike": (f"{STEP}, `loss`, `usual`", "the loss was far above its usual value"),
    "routing_collapsed": (
        f"{STEP}, `layer`, `load`, `reason`",
        "of the experts of a layer, or of a block's layers together, one is used for nearly all, or some hardly ever",
    ),
    "routing_recovered": (f"{STEP}, `layer`, `load`", "and does so no longer"),
    "keep_measured": (f"{STEP}, `split`, `cer`", "the error rate that an adaptation must keep was measured"),
    "checkpoint_uploaded": (f"{STEP}, `bytes`, `seconds`", "the run's store has a checkpoint whole"),
    "model_uploaded": (f"{STAGE}, `bytes`, `seconds`", "the run's store has a stage's model, adapter or units whole"),
    "upload_skipped": (f"{STEP}, `reason`", "a checkpoint is damaged here, and stays out of the store"),
    "upload_failed": ("`reason`", "the store takes nothing; uploads are tried again"),
    "uploads_resumed": ("`seconds`, `failures`", "it takes uploads again"),
    "stored_file_damaged": ("`file`, `reason`", "a file in the store is not what was written, and was not fetched"),
    "teacher_cache": (
        f"{STAGE}, `teacher`, `used`, `reason`",
        "which stored outputs are read, or why none are",
    ),
    "teacher_cached": (
        f"{STAGE}, `teacher`, `folder`, `shards`, `written`, `bytes`, `audio_s`, `left_out`",
        "the outputs of a teacher were stored",
    ),
}

# Key, unit, meaning. A star stands for any text without a slash. Rows of training are means over the steps since the
# last one.
METRICS = (
    ("step", "steps", "updates so far; every row has it"),
    ("time", "s", "when the row was written"),
    ("epoch", "epochs", "how often the training split has been begun, from 0"),
    ("loss", "", "sum of the terms below, each with its weight"),
    ("loss/ctc", "per token", "CTC"),
    ("loss/intermediate", "per token", "CTC at layers within the encoder"),
    ("loss/attention", "per token", "the decoder"),
    ("loss/reverse_attention", "per token", "the decoder that reads backwards"),
    ("loss/transducer", "per token", "the transducer"),
    ("loss/balance", "", "how unevenly routers load experts"),
    ("loss/z", "", "size of the routers' logits"),
    ("loss/sparsity", "", "how many experts share a frame"),
    ("loss/masked", "per masked frame", "predicted codes, without transcripts"),
    ("distill/*", "as the term", "a term of distillation: hidden, cosine, ctc, decoder, sequence, units"),
    ("distill/*/*", "as the term", "the same by teacher, where there are several"),
    ("grad_norm", "", "norm of the gradient before clipping"),
    ("learning_rate", "", "of the last step"),
    ("step_s", "s", "a step, with the wait for its data"),
    ("data_wait", "share of step_s", "waiting for data"),
    ("audio_s_per_s", "s per s", "speech trained on, per second"),
    ("flops_per_s", "1/s", "operations of the model, per second"),
    ("mfu", "share", "the same of what the devices can do; where that is known"),
    ("quarantined", "utterances", "left out because they could not be read"),
    ("skipped", "steps", "updates skipped so far"),
    ("split_micro_batches", "per step", "micro-batches computed in parts, as they did not fit whole"),
    ("out_of_memory", "times", "micro-batches that did not fit so far"),
    ("experts/*/load", "of an even load", "choices of each expert of a layer; a list"),
    ("experts/*/entropy", "share", "evenness of the load: 1 is even"),
    ("experts/*/dropped", "share", "choices beyond an expert's capacity, where there is one"),
    ("layers/*/cosine", "", "between what enters and what leaves a layer; with log_layers"),
    ("layers/*/gradient_norm", "", "of the gradient at a layer's output; with log_layers"),
    ("layers/rank", "", "effective rank of the encoder's output; with log_layers"),
    ("masked_accuracy", "share", "masked frames whose codes are predicted right"),
    ("code_entropy", "share", "evenness of the codes in use"),
    ("validation/loss", "as loss", "over the dev split"),
    ("validation/cer", "share", "characters wrong, greedy search, over the dev split"),
    ("validation/keep_cer", "share", "the same of the split that an adaptation must keep"),
    ("validation/masked_accuracy", "share", "as masked_accuracy, over the dev split"),
    ("validation/code_entropy", "share", "as code_entropy, over the dev split"),
    ("validation_s", "s", "a validation"),
    ("save_stall_s", "s", "training stood still for a save"),
    ("goodput/wall_s", "s", "wall time of the stage so far"),
    (
        "goodput/*",
        "share of goodput/wall_s",
        "useful, lost, start, restart, save, validation, data_wait, finish, other",
    ),
)


def records_page() -> str:
    """Return the page, as Markdown."""
    lines = [INTRODUCTION, "## Events", ""]
    rows = []
    for name, (fields, meaning) in EVENTS.items():
        rows.append((code(name), fields, cell(meaning)))
    lines += table(("event", "fields", "meaning"), rows)
    lines += ["## Metrics", ""]
    rows = []
    for key, unit, meaning in METRICS:
        rows.append((code(key), unit, cell(meaning)))
    lines += table(("key", "unit", "meaning"), rows)
    return "\n".join(lines).rstrip() + "\n"
