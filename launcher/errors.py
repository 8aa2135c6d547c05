"""The errors a user can cause or meet, and the exit code that `chorus` gives for each.

A message is one paragraph: what happened, where, what was seen, what to do. Anything that is not one of these
is a fault of Chorus itself and is shown with its traceback.
"""

import errno

from data.errors import DataError
from data.files import NoRegularFileError


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


# What the system says of a place, and what helps. Other errors of the system are faults of ours.
PLACE_REMEDIES = {
    errno.ENOSPC: "Make room there",
    errno.EDQUOT: "Make room there, or have the quota raised",
    errno.EFBIG: "Choose a folder on another file system",
    errno.EROFS: "Choose a folder that can be written to",
    errno.EACCES: "Have the permission given, or choose another folder",
    errno.EPERM: "Have the permission given, or choose another folder",
    errno.ENOTDIR: "A file stands where a folder belongs: move it away, or choose another folder",
    errno.EISDIR: "A folder stands where a file belongs: move it away",
    errno.EEXIST: "Something else stands there: move it away",
    errno.ENAMETOOLONG: "Choose a shorter name",
    errno.EIO: "Look after the disk, or the server that it is on",
    errno.ESTALE: "Look after the server that the disk is on",
    errno.ELOOP: "Links lead around in a circle there: remove them",
    errno.ENXIO: "Something that is no file stands there: move it away",
    errno.EMFILE: "Raise the number of open files (ulimit -n)",
    errno.ENFILE: "Close programs that hold many files open",
    errno.ENOMEM: "Free memory",
    errno.EAGAIN: "Raise the number of processes (ulimit -u)",
}


def place_problem(error: OSError) -> str | None:
    """Return in one paragraph what is wrong with the place of a file, and what helps; None where the fault is ours."""
    remedy = PLACE_REMEDIES.get(error.errno or 0)
    if isinstance(error, NoRegularFileError):
        remedy = "A pipe, a device or a folder stands where a file belongs: move it away"
    if remedy is None:
        return None
    place = error.filename or "The output of this command, or a file that it writes,"
    return (
        f"{place} cannot be used: {error.strerror}. {remedy}, and give the same command again: what is done is not "
        "repeated."
    )


def exit_code(error: BaseException) -> int:
    """Return the exit code of an error: 2 to 6 and 75 as listed above, 1 for any other."""
    return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)
