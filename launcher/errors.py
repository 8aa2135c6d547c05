"""The errors a user can cause or meet, and the exit code that `chorus` gives for each.

A message is one paragraph: what happened, where, what was seen, what to do. Anything that is not one of these
is a fault of Chorus itself and is shown with its traceback.
"""

from data.errors import DataError


class ConfigError(Exception):
    """The recipe, an option or this machine does not allow what was asked for."""


class CheckpointError(Exception):
    """A checkpoint or a finished model is missing, torn, or belongs to another configuration."""


class DistributedError(Exception):
    """A process of a training stage was lost or hung, and the restarts are used up."""


class DivergedError(Exception):
    """Losses or gradients stayed infinite or undefined: the data, the settings or the model are at fault."""


class Preempted(BaseException):
    """The run was asked to stop; running the same command again goes on from here.

    A request and no error: whoever catches every Exception, to try again or to write it to a log, lets it pass.
    """


EXIT_CODES: dict[type[BaseException], int] = {
    ConfigError: 2,
    DataError: 3,
    CheckpointError: 4,
    DistributedError: 5,
    DivergedError: 6,
    Preempted: 75,
}


def exit_code(error: BaseException) -> int:
    """Return the exit code of an error: 2 to 6 and 75 as listed above, 1 for any other."""
    return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)
