"""`python -m docs.generate`: write docs/reference from the code."""

from pathlib import Path

from docs.generate import PAGES

REFERENCE = Path(__file__).parents[1] / "reference"

if __name__ == "__main__":
    for name, make_page in PAGES.items():
        path = REFERENCE / name
        text = make_page()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"{path.relative_to(REFERENCE.parents[1])} is new")
