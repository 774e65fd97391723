"""What the command line does: training, prediction and benchmarks."""


class UserError(ValueError):
    """What was asked for cannot be done; the message is one line that says what to do instead."""


class TrainingError(RuntimeError):
    """Training had to stop; the message is one line that says what is saved and what to do."""
