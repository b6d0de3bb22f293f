"""What can go wrong, each with a message that says what, where, and what to do."""


class Told:
    """Of an error whose message says it all: a notebook shows the message without a traceback."""

    def _render_traceback_(self) -> list[str]:  # IPython asks for it
        return [f"{type(self).__name__}: {self}"]


class ConfigError(Told, ValueError):
    """Parameters that cannot be run; the message has one line for each mistake."""


class MergeError(Told, ValueError):
    """Weights that cannot be merged; the message names the tensors or the group."""


class TrainingError(Told, RuntimeError):
    """A run that cannot go on; the message says at which step, and what to try."""


class DamagedError(Told, RuntimeError):
    """A file whose content is not what was written."""


class StorageError(Told, OSError):
    """The disk is full, or cannot be written to; names the path and the bytes that are needed."""


class BusyError(Told, RuntimeError):
    """Another process is at work on the same folder."""


class Interrupted(Told, KeyboardInterrupt):
    """Ctrl-C or SIGTERM; what was done is kept, and the message says how to go on."""
