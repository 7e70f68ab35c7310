"""What a user can mend, told in one line."""


class InputError(Exception):
    """A user's mistake: the message names the place and the value, and says how to mend it.

    Jobs print it as one line and exit with code 2; it never shows a traceback.
    """


class StoreError(InputError):
    """A place that cannot be read or written now: a store out of reach, a full disk, no permission.

    It says nothing of what lies there, and the same attempt may succeed later.
    """


class FullError(StoreError):
    """A disk without space."""


class UnreachableError(StoreError):
    """An object store that does not answer, or that asks to come back later."""


def interruption_within(error: BaseException | None) -> BaseException | None:
    """The KeyboardInterrupt or SystemExit of a signal handler that an exception is, or that a lock replaced by it.

    A handler that raises inside `Condition.wait`, where the lock is released, leaves its `with` block without the lock. The
    end of that block then raises RuntimeError ("release unlocked lock") in place of the handler's exception.
    """
    while isinstance(error, RuntimeError) and str(error).endswith(("unlocked lock", "un-acquired lock")):
        error = error.__context__
    return error if isinstance(error, KeyboardInterrupt | SystemExit) else None


def input_error_within(error: BaseException | None) -> InputError | None:
    """The InputError that an exception is or was raised for; libraries wrap what a worker raised."""
    while error is not None:
        if isinstance(error, InputError):
            return error
        inner = getattr(error, "cause", None) or getattr(error, "_base_exc", None)  # of Ray, and of Ray Train
        error = inner if isinstance(inner, BaseException) else error.__cause__
    return None


def first_line(error: BaseException | str) -> str:
    """The first line of an error's message, or of a text, at most 200 characters; the name of its class where it is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
