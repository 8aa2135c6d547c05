"""The page of the board: one file without anything from elsewhere, that asks the board's own paths.

Nothing of a run is part of it: names and texts come as JSON, and the page shows them as text.
"""

from pathlib import Path

from launcher.report.environment import page_environment


def render_page() -> str:
    return page_environment(Path(__file__).parent).get_template("board.html").render()
