"""What each process of a stage runs: `python -m launcher.worker RUN_DIR STAGE`.

The launcher starts it, through `deepspeed` for training stages; it reads the resolved recipe of the run folder, works,
and leaves `done.json` behind, or an error file of its rank. Exit codes are those of `chorus`. A signal to any process
of a training is a request to stop: all of them save at the same step and leave.
"""

import faulthandler
import logging
import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from data.redaction import RedactingFormatter
from launcher.errors import Preempted, exit_code
from launcher.processes.start_profile import start_profile
from launcher.processes.stop_request import StopRequest
from launcher.run_folder import RunFolder, write_json

if TYPE_CHECKING:
    from launcher.processes.heartbeat import Heartbeat
    from launcher.recipe import AnyTrainingStage
    from launcher.stages.context import StageContext

logger = logging.getLogger(__name__)
# A tracker that does not answer may not hold up the end of the process for longer, after an error and at the end.
FLUSH_ERROR_S = 3.0
FLUSH_S = 20.0


def main(arguments: list[str]) -> int:
    with StopRequest().installed() as stop:
        start_profile.begin()
        run = RunFolder(Path(arguments[0]))
        stage_name = arguments[1]
        rank = int(os.environ.get("RANK", "0"))
        folder = run.stage(stage_name)
        path = folder.rank_log(rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
        handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(message)s"))
        logging.basicConfig(handlers=[handler], force=True)
        for package in ("data", "model", "launcher"):
            logging.getLogger(package).setLevel(logging.INFO)
        # A hang is answered with SIGABRT: what every thread was doing then goes into the same log.
        assert handler.stream is not None
        faulthandler.enable(handler.stream)

        # Heavy imports come after the signal handlers: a signal during them would end the process with nothing saved.
        from launcher.processes.heartbeat import Heartbeat, leave_with_launcher
        from launcher.processes.worker_error import record_error

        leave_with_launcher()
        heartbeat = Heartbeat(folder, rank)
        heartbeat.beat(0, "start")
        try:
            _work(run, stage_name, heartbeat, stop)
        except Preempted as stopped:
            logger.info("%s", stopped)
            heartbeat.leave(exit_code(stopped))
            return exit_code(stopped)
        except Exception as error:
            code = exit_code(error)
            if code == 1:
                logger.error("%s", traceback.format_exc())
            else:
                logger.error("%s", error)
            # Before the heartbeat says that this process leaves: the supervisor then looks for the error file.
            # A full disk must not change the exit code.
            with suppress(OSError):
                record_error(folder, rank, error)
            heartbeat.leave(code)
            return code
    return 0


def _work(run: RunFolder, stage_name: str, heartbeat: "Heartbeat", stop: StopRequest) -> None:
    import torch

    from launcher.recipe import EvaluateStage, load_recipe
    from launcher.stages.context import StageContext

    recipe = load_recipe(run.recipe_file, of_run=True)
    stage = recipe.stage(stage_name)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if not isinstance(stage, EvaluateStage):
        _train(StageContext(recipe, run, stage), heartbeat, stop)
        return

    from launcher.inference.analysis import analyse_if_possible
    from launcher.inference.evaluation import evaluate
    from launcher.inference.evaluation_tracking import track_evaluation

    # An evaluation has nothing to save halfway, so a signal ends it at once.
    with stop.interrupting():
        context = StageContext(recipe, run, stage)
        results = evaluate(context, heartbeat)
        write_json(context.folder.evaluation_file, results)
        analyse_if_possible(context, heartbeat.tick)
        track_evaluation(context, results)
        write_json(context.folder.done_file, {"status": "done", "step": 0})


def _train(context: "StageContext[AnyTrainingStage]", heartbeat: "Heartbeat", stop: StopRequest) -> None:
    import torch.distributed as dist

    from launcher.stages.lineage import made_artifacts
    from launcher.training import parallel
    from launcher.training.setup import build_trainer, write_model

    # Importing all of this takes long where the disk is slow.
    heartbeat.tick()
    start_profile.mark("imports")
    device = parallel.start_processes()
    heartbeat.tick()
    start_profile.mark("process group")
    trainer = build_trainer(context, heartbeat, device, stop)
    try:
        status = trainer.run()
    except Exception:
        # The alerts that say what went wrong.
        trainer.log.close(timeout_s=FLUSH_ERROR_S)
        raise

    if dist.get_rank() == 0:
        if status == "done":
            heartbeat.beat(trainer.step, "save")
            write_model(context)
            heartbeat.tick()
            if trainer.log.tracker:
                trainer.log.tracker.artifacts(lambda: made_artifacts(context), used=False)
        trainer.log.close(timeout_s=FLUSH_S)
        # Last of all: the launcher takes this file for the end of the stage.
        write_json(context.folder.done_file, {"status": status, "step": trainer.step})
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    # Libraries' threads must not keep a finished process alive.
    os._exit(code)
