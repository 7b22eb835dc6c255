"""The one exception that users see: a line that says what was given, what was wanted and what to do."""


class ScscoError(ValueError):
    """Something the user gave cannot be used; the message is one line that names it and says what to do."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; PyTorch's for the CPU is a plain RuntimeError.

    Its own class is known by name, so that nobody has to import torch to ask.
    """
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or "allocate memory" in str(error)
