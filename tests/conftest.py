"""What holds for all tests."""

from hypothesis import settings

# How long an example takes says more about what else the machine does than about what is tested.
settings.register_profile("unhurried")
settings.load_profile("unhurried")
