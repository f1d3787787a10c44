"""Ending a llama_decode that is running, from another thread.

libllama asks a callback between two operations of the graph whether to stop: a thousand times in
each decode. A callback in Python would need the interpreter's lock for each, which other threads
may hold for milliseconds. So the callback is a C function that every system has and that reads our
flag as it is: strlen of "" is 0, which is false, and strlen of "\1" is 1, which is true.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

GO_ON, STOP = b"", b"\1"


class Interrupt:
    """The flag of one context; keep it as long as the context. `works` tells if it has any effect.

    `is_set` tells whether there is something to `clear`: a look at the flag itself costs more.

    In some builds the callback hangs; there none is set, and a decode runs to its end.
    """

    def __init__(self, lib: Any, context: Any) -> None:
        self._log = lib.log
        self.is_set = False
        self._flag = ctypes.create_string_buffer(2)
        self.works = lib.has("abort_callback") and not lib.hazard("abort_hangs")
        if self.works:
            libc = ctypes.CDLL("msvcrt") if sys.platform == "win32" else ctypes.CDLL(None)
            function = ctypes.cast(libc.strlen, ctypes.c_void_p)
            lib.llama_set_abort_callback(context, function, ctypes.addressof(self._flag))

    def set(self) -> None:
        """Stop the decode that runs now, or else the next one. Any thread.

        libllama calls that a failure, in several lines, which are hushed until `clear`.
        """
        if self.works:
            self._log.hush_while(self._says_stop)
            self._flag.value = STOP
            self.is_set = True  # not before: `clear` would come too early, and never again

    def clear(self) -> None:
        self.is_set = False
        self._flag.value = GO_ON

    def _says_stop(self) -> bool:
        return self._flag.value == STOP
