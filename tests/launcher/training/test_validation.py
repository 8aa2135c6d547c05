"""What validation measures is the split's, however it is divided."""

import pytest
import torch
import torch.distributed as dist
from small_runs import STAGE

from data.text.tokenizer import Tokenizer
from launcher.processes.heartbeat import Heartbeat
from launcher.recipe import load_recipe
from launcher.stages.context import StageContext
from launcher.training.inputs import open_inputs
from launcher.training.recognition_loss import RecognitionLoss
from launcher.training.validation import ErrorRateValidator, validate
from model.recognizer import Recognizer

ALONE = ["cluster.processes=1", "cluster.expert_parallel=1"]


@pytest.fixture(scope="module", autouse=True)
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_validation_loss_does_not_depend_on_lanes_or_on_the_budget_of_a_batch(make_run):
    run = make_run("validation")
    metrics = []
    for lanes, seconds in ((1, 6), (2, 6), (4, 6), (5, 6), (4, 20)):
        recipe = load_recipe(run.recipe_file, [*ALONE, f"batches.lanes={lanes}", f"batches.seconds={seconds}"])
        context = StageContext.training(recipe, run, STAGE)
        inputs = open_inputs(context, "dev", tuple(range(lanes)), torch.device("cpu"))
        tokenizer = Tokenizer.load(run.tokenizer)
        torch.manual_seed(3)
        model = Recognizer(context.stage.model, recipe.features.mel_bins, tokenizer.vocabulary_size)
        # The balance of experts is a property of a batch; everything else is one of utterances.
        objective = context.stage.objective.model_copy(update={"balance_weight": 0.0})
        stage_loss = RecognitionLoss(objective, context.stage.model.encoder)
        heartbeat = Heartbeat(context.folder, rank=0)
        metrics.append(validate(model, stage_loss, inputs, ErrorRateValidator(tokenizer), heartbeat, step=0))
    for other in metrics[1:]:
        assert other == pytest.approx(metrics[0], rel=1e-5)
