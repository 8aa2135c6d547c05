"""`chorus board`: a page over many runs, as they go on."""

import argparse
from pathlib import Path

from launcher.errors import ConfigError
from launcher.serving.settings import is_loopback, listen, read_token, require_token


def board(options: argparse.Namespace) -> int:
    token_file = Path(options.token_file).expanduser() if options.token_file else None
    token = read_token(token_file)
    folders = [Path(folder).expanduser() for folder in options.runs]
    with listen(options.host, options.port) as opened:
        is_local = is_loopback(opened)
        require_token(is_local, token)
        try:
            from launcher.board.app import build_board
            from launcher.board.server import run_board
            from launcher.board.watcher import Watcher
        except ImportError as error:
            raise ConfigError(
                f"The board needs packages that are not installed here ({error}). Install them with pip install "
                "'chorus-asr[serve]'."
            ) from None

        app = build_board(Watcher(folders), is_local, token)
        host, port = opened.getsockname()[:2]
        if ":" in host:
            host = f"[{host}]"
        print(f"The board is at http://{host}:{port}", flush=True)
        run_board(app, opened)
    return 0
