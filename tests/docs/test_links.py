"""Links between the pages lead somewhere, to their headings too; the site's menu holds every page."""

import re
from pathlib import Path

import pytest
import yaml

from docs.generate.recipe import anchor

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])
LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def headings(page: Path) -> set[str]:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    anchors: set[str] = set()
    for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        # What a link in a heading leads to is not part of its anchor.
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        anchors.add(anchor(plain))
    return anchors


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    dead = []
    for target in LINK.findall(text):
        place, _, heading = target.partition("#")
        if "://" in target:
            continue
        linked = (page.parent / place).resolve() if place else page
        # A line of a source has no heading.
        has_headings = heading and linked.suffix == ".md"
        if not linked.exists() or (has_headings and heading not in headings(linked)):
            dead.append(target)
    assert dead == []


def pages_of_menu(entries: list) -> set[str]:
    pages = set()
    for entry in entries:
        value = entry
        if isinstance(entry, dict):
            (value,) = entry.values()
        if isinstance(value, list):
            pages |= pages_of_menu(value)
        else:
            pages.add(value)
    return pages


def test_the_menu_of_the_site_holds_every_page():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")}
    assert pages_of_menu(site["nav"]) == pages
