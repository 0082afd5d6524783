"""The one family of errors that a user can cause. The command line prints their message alone and exits with `exit_code`.

A message says what was found, what was expected, in which file or case, and what to do next.
"""


class JaxsegError(Exception):
    """Something that the user can mend. Exit code 2."""

    exit_code = 2


class InputError(JaxsegError):
    """A file or folder that is missing, broken, or not what it was given as."""


class GeometryError(InputError):
    """Orientation, spacing or grids that are unusable or contradict each other."""


class ConfigError(JaxsegError):
    """A setting that does not exist, or whose value makes no sense."""


class ShapeError(JaxsegError):
    """An array whose shape or channels do not fit the model it is given to."""


class CheckpointError(JaxsegError):
    """A checkpoint or model folder that is damaged, or made for another architecture."""


class StorageError(JaxsegError):
    """A place that cannot be written: no space left, read-only, or locked by another run."""


class TrainingError(JaxsegError):
    """Training that cannot go on: the loss stayed non-finite after skipping and rolling back."""


class DeviceMemoryError(JaxsegError):
    """Work that does not fit into the device's memory, in however small parts it is done."""


class Preempted(JaxsegError):
    """The run was told to stop; its state is saved, and the same command goes on from there."""

    exit_code = 75
