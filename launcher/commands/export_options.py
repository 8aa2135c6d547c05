"""The options of `chorus export` and `chorus publish`. Nothing heavy is imported."""

import argparse
from collections.abc import Callable

from launcher.commands.common_options import add_adapter, add_json

FORMATS = ("chorus", "huggingface", "onnx", "sherpa-onnx", "torch-export")
DTYPES = ("fp32", "fp16")


def add_export(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    command: Callable[[str, str], Callable[[argparse.Namespace], int]],
) -> None:
    parser = commands.add_parser("export", help="write the model of a checkpoint, or a model for other programs")
    parser.add_argument(
        "stage", metavar="RUN/STAGE", help="a training stage with a checkpoint, running or not; or a model folder"
    )
    parser.add_argument(
        "--format", choices=FORMATS, default="chorus", help="layout of the folder (default: chorus, of a checkpoint)"
    )
    parser.add_argument(
        "--step",
        type=int,
        metavar="N",
        help="step of the checkpoint (default: the newest intact, or the stage's model)",
    )
    parser.add_argument(
        "--average",
        metavar="KIND",
        help="average of checkpoints in place of one: last:N, best:N, or the running average of the newest; with "
        "--step, of those up to it",
    )
    parser.add_argument(
        "--out", metavar="DIR", help="new folder of the model (default: RUN/STAGE/export/step-N or export/FORMAT)"
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="fp32",
        help="of chorus and huggingface: how weights are stored (default: fp32; fp16 takes half the bytes)",
    )
    parser.add_argument("--int8", action="store_true", help="of onnx and sherpa-onnx: write int8 forms too")
    parser.add_argument(
        "--evaluate", metavar="SPLIT", help="of onnx: shards for the error rates and speed of its forms beside torch's"
    )
    parser.add_argument("--licence", metavar="NAME", help="of huggingface: the model's licence, such as cc-by-4.0")
    add_adapter(parser)
    add_json(parser)
    parser.set_defaults(command=command("export", "export"))

    parser = commands.add_parser("publish", help="write a model for the Hugging Face hub, and upload it with a token")
    parser.add_argument("model", metavar="MODEL", help="RUN/STAGE, a model folder, or one in Hugging Face's layout")
    parser.add_argument("--to", metavar="REPO", help="repository, as OWNER/NAME; without it nothing is uploaded")
    parser.add_argument("--out", metavar="DIR", help="new folder (default: RUN/STAGE/export/huggingface)")
    parser.add_argument("--licence", metavar="NAME", help="the model's licence, such as cc-by-4.0")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="how weights are stored (default: fp32)")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--dry-run", action="store_true", help="write the folder and show what would be sent")
    add_json(parser)
    parser.set_defaults(command=command("publish", "publish"))
