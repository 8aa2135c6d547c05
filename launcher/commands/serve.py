"""`chorus serve`: finished models over HTTP and WebSocket."""

import argparse
import os
import re
from pathlib import Path

from launcher.commands.search_options import read_search_options
from launcher.devices import recognition_device
from launcher.errors import ConfigError
from launcher.inference.ffmpeg import find_ffmpeg
from launcher.inference.model_lookup import find_model
from launcher.registry.promotions import find_pointer
from launcher.serving.settings import ServerSettings, is_loopback, listen, read_token

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def serve(options: argparse.Namespace) -> int:
    # Every batch has another shape, and oneDNN would keep what it compiled for the last 1024. It
    # reads this when it is first used.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    folders = name_models(options.models)
    search = read_search_options(options)
    if options.ffmpeg and find_ffmpeg() is None:
        raise ConfigError(
            "--ffmpeg is given, and there is no ffmpeg here. Install it, or pip install 'chorus-asr[ffmpeg]'; or leave "
            "the option out."
        )
    token_file = Path(options.token_file).expanduser() if options.token_file else None
    token = read_token(token_file)
    with listen(options.host, options.port) as opened:
        settings = ServerSettings(
            max_bytes=round(_finite(options.max_mb) * 2**20),
            max_seconds=options.max_seconds,
            max_running=options.max_requests,
            timeout_s=options.timeout,
            batch_size=options.batch,
            batch_wait_s=options.batch_wait_ms / 1000,
            stop_s=options.stop_seconds,
            uses_ffmpeg=options.ffmpeg,
            is_local=is_loopback(opened),
            token=token,
        )
        settings.check()
        try:
            from launcher.serving.app import ServedModel, build_app
            from launcher.serving.server import run_server
        except ImportError as error:
            raise ConfigError(
                f"A server needs packages that are not installed here ({error}). Install them with pip install "
                "'chorus-asr[serve]'."
            ) from None

        from launcher.inference.transcriber import Transcriber

        device = recognition_device(options.device)
        models = {}
        for name, folder in folders.items():
            model = Transcriber.load(folder, search, device, dtype=options.dtype).model
            written = max(path.stat().st_mtime for path in folder.glob("*.safetensors"))
            models[name] = ServedModel(name=name, model=model, created=int(written))
        app = build_app(models, settings)
        host, port = opened.getsockname()[:2]
        if ":" in host:
            host = f"[{host}]"
        print(f"Serving {', '.join(models)} at http://{host}:{port}", flush=True)
        return run_server(app, opened)


def name_models(arguments: list[str]) -> dict[str, Path]:
    """The folders of models by the names that requests call them: those given as NAME=MODEL, else that of the stage or
    the folder. ConfigError for a name that is given twice or is none, CheckpointError where there is no model."""
    folders: dict[str, Path] = {}
    for argument in arguments:
        name, equals, place = argument.partition("=")
        # A path may have an equals sign in it.
        if not equals or "/" in name or Path(argument).exists():
            place = argument
            name = ""
        folder = find_model(place)
        pointer = find_pointer(place)
        if not name and pointer is not None and not Path(place).is_dir():
            name = pointer.name
        if not name:
            named = folder.absolute()
            name = named.parent.name if named.name == "model" else named.name
        if not MODEL_NAME.fullmatch(name):
            raise ConfigError(
                f"{name[:100]!r} cannot be the name of a model in requests: it has 1 to 64 letters, digits, dots, "
                f"dashes and underscores. Give it another one: NAME={place}."
            )
        if name in folders:
            raise ConfigError(
                f"Two models would be called {name}: {folders[name]} and {folder}. Name one of them otherwise: "
                f"OTHER={place}."
            )
        folders[name] = folder
    return folders


def _finite(value: float) -> float:
    """A limit that can be rounded; 0 is refused as every other one."""
    if value == value and abs(value) != float("inf"):
        return value
    return 0.0
