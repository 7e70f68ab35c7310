"""What a user can mend, told in one line."""


class InputError(Exception):
    """A user's mistake: the message names the place and the value, and says how to mend it.

    Jobs print it as one line and exit with code 2; it never shows a traceback.
    """


class StoreError(InputError):
    """A file that may be fine but cannot be read now: a store out of reach, no permission. It says nothing of the file."""
