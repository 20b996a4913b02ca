"""What a long warm-up is doing, on the terminal: NumPyro's bar begins when warm-up is over."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Timer

DELAY = 1.0  # seconds; what takes less is not worth a message
_CLEAR = "\r\033[K"  # to the beginning of the line, and erase it


@contextmanager
def shown_phases() -> Iterator[Callable[[str], None]]:
    """A function that shows the name of the present phase on a line of its own.

    Nothing is shown within the first second, nor if standard error is not a terminal. The line is
    erased in the end.
    """
    current, is_late = "", False

    def show(name: str) -> None:
        nonlocal current
        current = name
        if is_late:
            print(f"{_CLEAR}RWPO: {current}", end="", file=sys.stderr, flush=True)

    def begin() -> None:
        nonlocal is_late
        is_late = True
        show(current)

    if not sys.stderr.isatty():
        yield show
        return
    timer = Timer(DELAY, begin)
    timer.daemon = True
    timer.start()
    try:
        yield show
    finally:
        timer.cancel()
        timer.join()
        if is_late:
            print(_CLEAR, end="", file=sys.stderr, flush=True)
