"""What a user can mend, told in one line."""


class InputError(Exception):
    """A user's mistake: the message names the place and the value, and says how to mend it.

    Jobs print it as one line and exit with code 2; it never shows a traceback.
    """


class StoreError(InputError):
    """A place that cannot be read or written now: a store out of reach, a full disk, no permission.

    It says nothing of what lies there, and the same attempt may succeed later.
    """


class UnreachableError(StoreError):
    """An object store that does not answer, or that asks to come back later."""


def is_interruption(error: BaseException) -> bool:
    """Whether an exception is a KeyboardInterrupt, or what Python's locks made of one.

    A signal handler that raises while a thread waits for a lock leaves a `with` block without the lock; releasing it raises
    RuntimeError ("release unlocked lock") in place of the KeyboardInterrupt.
    """
    if isinstance(error, RuntimeError) and "lock" in str(error) and error.__context__ is not None:
        return is_interruption(error.__context__)
    return isinstance(error, KeyboardInterrupt)


def input_error_within(error: BaseException | None) -> InputError | None:
    """The InputError that an exception is or was raised for; libraries wrap what a worker raised."""
    while error is not None:
        if isinstance(error, InputError):
            return error
        inner = getattr(error, "cause", None) or getattr(error, "_base_exc", None)  # of Ray, and of Ray Train
        error = inner if isinstance(inner, BaseException) else error.__cause__
    return None
