"""The engine child's whole program: the engine, the child's end of the pipe, and nothing else.

Clients wait for every restart, and a restart pays for each import. So the child does not run the
file that the user started, which would load templates, grammars and HTTP as well: it runs this
module out of that same file (see `supervise.launch.module_command`).
"""

from __future__ import annotations

from collections.abc import Sequence

from libloader.engine.build import build_engine
from libloader.supervise import child


def main(arguments: Sequence[str]) -> int:
    """Be the child; the last argument is the address that the front adds. No return."""
    return child.main(arguments, build_engine)
