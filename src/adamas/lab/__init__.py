"""What the command line does: training, prediction and benchmarks."""


class UserError(ValueError):
    """What was asked for cannot be done; the message is one line that says what to do instead."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python or torch says that memory ran out."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "memory" in str(error).lower()
    )


class TrainingError(RuntimeError):
    """Training had to stop; the message is one line that says what is saved and what to do."""
