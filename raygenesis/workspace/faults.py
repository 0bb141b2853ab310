"""Errors of files and of machines: which of them may pass, and what is said of those that last.

What may pass, such as a file server that is away for a minute, says nothing of a file: it is tried again, and ends the
job where it stays, so that the same command goes on from there. Only what lasts becomes a failure that is published.
Ray runs again by itself what a lost worker or node was doing (`cluster/fan_out.py`, `cluster/streams.py`).
"""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable
from typing import TypeGuard, TypeVar

from raygenesis.errors import PassingError, ScanError
from raygenesis.text.names import reason_text

ATTEMPTS = 7  # waits of up to 1, 2, 4, 8, 16 and 20 s lie between them: about half a minute until a fault is lasting
MAX_WAIT_SECONDS = 20

# Of networks and file servers, and of machines that are short of something for a while. A damaged disk says EIO too.
# Not every system has all.
PASSING_NAMES = (
    "EIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EINTR", "EBUSY", "ENOMEM", "ENOBUFS", "EMFILE", "ENFILE", "ECONNRESET",
    "ECONNABORTED", "ECONNREFUSED", "ENOTCONN", "ENETDOWN", "ENETUNREACH", "ENETRESET", "EHOSTDOWN", "EHOSTUNREACH",
    "ENOLINK", "EREMOTEIO", "ESHUTDOWN", "EPIPE",
)  # fmt: skip
PASSING = frozenset(getattr(errno, name) for name in PASSING_NAMES if hasattr(errno, name))

T = TypeVar("T")


def is_of_machine(error: BaseException) -> bool:
    """Whether an error is the machine's and not the file's, such as a lost file server or too little memory."""
    # A damaged file may have its reader look at a place that cannot be: the system says EINVAL.
    has_number = isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
    return has_number or isinstance(error, TimeoutError | MemoryError)


def is_passing(error: BaseException) -> bool:
    """Whether an error may pass by itself within minutes, whatever the file holds."""
    return isinstance(error, TimeoutError | PassingError) or (isinstance(error, OSError) and error.errno in PASSING)


def patiently(act: Callable[[], T], what: object) -> T:
    """What a function returns; one that fails in what may pass is called again, after waits that grow.

    what: that it reads or writes, for the sentence. Raises PassingError where it fails so each time, other errors as
    they come.
    """
    for number in range(ATTEMPTS - 1):
        try:
            return act()
        except OSError as error:
            if not is_passing(error):
                raise
        wait(number)
    try:
        return act()
    except OSError as error:
        raise_passing(error, what, ATTEMPTS)
        raise


def wait(number: int) -> None:
    """Wait before the attempt after `number` and one more have failed: longer each time, and not all at the same."""
    time.sleep(random.uniform(0, min(2**number, MAX_WAIT_SECONDS)))


def raise_passing(error: BaseException, what: object, attempts: int = 1) -> None:
    """Raise PassingError, naming `what`, where an error may pass."""
    if isinstance(error, PassingError):
        raise error
    if is_passing(error):
        tried = f" in {attempts} attempts" if attempts > 1 else ""
        raise PassingError(
            f"{what} cannot be reached{tried} ({_said(error)}): see to its disk, network or server, then run the same "
            "command again, which goes on"
        ) from error


def lasting_reason(error: ScanError | OSError | PassingError, what: object = "a file") -> str:
    """Why a file cannot be used, for a table of failures. Raises PassingError, naming `what`, where it may pass.

    A fault of the disk (EIO) in `what` that stayed after all attempts lasts, as of a damaged sector: no run would come
    past it.
    """
    cause = error.__cause__
    if isinstance(error, PassingError) and str(error).startswith(str(what)) and _is_of_disk(cause):
        return reason_text(f"cannot be read ({_said(cause)})")
    raise_passing(error, what)
    return reason_text(str(error) if isinstance(error, ScanError) else f"cannot be read ({_said(error)})")


def _is_of_disk(error: BaseException | None) -> TypeGuard[OSError]:
    return isinstance(error, OSError) and error.errno == errno.EIO


def _said(error: BaseException) -> str:
    """What the system says of an error; no path is in it."""
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else getattr(error, "strerror", None) or type(error).__name__
