"""The pages of docs/reference, written from the code: `python -m docs.generate`."""

from docs.generate.commands import commands_page
from docs.generate.recipe import recipe_page
from docs.generate.records import records_page
from docs.generate.run_folder import run_folder_page

PAGES = {
    "recipe.md": recipe_page,
    "commands.md": commands_page,
    "records.md": records_page,
    "run-folder.md": run_folder_page,
}
"""What writes each page."""
