"""The processes of a stage: launchers that start them, a supervisor that watches them and ends them."""
