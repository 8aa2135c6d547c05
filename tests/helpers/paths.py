"""Where the tests and their scripts lie."""

from pathlib import Path

HELPERS = Path(__file__).parent
ROOT = HELPERS.parents[1]
FIXTURES = HELPERS.parent / "fixtures"
