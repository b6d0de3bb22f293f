"""What can go wrong, each with a message that says what, where, and what to do."""


class MessageOnly:
    """Of an error whose message says it all: a notebook shows it without a traceback."""

    def _render_traceback_(self) -> list[str]:  # IPython asks for it
        return [f"{type(self).__name__}: {self}"]


class ConfigError(MessageOnly, ValueError):
    """Parameters that cannot be run; the message has one line for each mistake."""


class MergeError(MessageOnly, ValueError):
    """Weights that cannot be merged; the message names the tensors or the group."""


class TrainingError(MessageOnly, RuntimeError):
    """A run that cannot go on; the message says at which step, and what to try."""


class RewardError(TrainingError):
    """A reward that fails, or gives what is no reward; the message names it."""


class DamagedError(MessageOnly, RuntimeError):
    """A file whose content is not what was written."""


class StorageError(MessageOnly, OSError):
    """The disk is full, or cannot be written to; names the path and the bytes that are needed."""


class BusyError(MessageOnly, RuntimeError):
    """Another process is at work on the same folder."""


class Interrupted(MessageOnly, KeyboardInterrupt):
    """Ctrl-C or SIGTERM; what was done is kept, and the message says how to go on."""


class DiedError(MessageOnly, RuntimeError):
    """A process ended without a word: killed, or out of memory."""


class EvaluationError(MessageOnly, FloatingPointError):
    """A logit, a reward or a KL that is not finite."""
