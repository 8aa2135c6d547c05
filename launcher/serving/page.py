"""The page of a server: one file without anything from elsewhere, that asks the server's own interface."""

from collections.abc import Iterable
from pathlib import Path

from launcher.report.environment import page_environment


def render_page(models: Iterable[str]) -> str:
    """The page for models of these names."""
    return page_environment(Path(__file__).parent).get_template("page.html").render(models=list(models))
