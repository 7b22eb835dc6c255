"""The one exception that users see: a line that says what was given, what was wanted and what to do."""


class ScscoError(ValueError):
    """Something the user gave cannot be used; the message is one line that names it and says what to do."""
