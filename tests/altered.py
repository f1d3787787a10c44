"""igllama with figures that no flag sets: a program for tests, told by the JSON in IGLLAMA_ALTERED.

    limits               fields of supervise.limits.Limits
    n_cells              of the KV cache over all slots: fewer than the slots could use
    file_bytes           a file grows no larger: to the writer, a disk that is full
    offline              true: a connection to anywhere, or the look-up of a name, is exit code 99

The engine child is this program too.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

with contextlib.suppress(ImportError):  # missing on Windows
    import resource

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import igllama  # noqa: E402
from libloader import engine_child, service  # noqa: E402
from libloader.llama import context  # noqa: E402
from libloader.supervise import launch  # noqa: E402
from libloader.supervise.limits import Limits  # noqa: E402

OUTWARD = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr",
           "socket.sendto")  # fmt: skip
CHILD = "--engine-child"


def alter(figures: dict[str, Any]) -> None:
    service.child_command = lambda: [*launch.python(), str(Path(__file__).resolve()), CHILD]
    service.SupervisorOptions = functools.partial(
        service.SupervisorOptions,
        limits=Limits(**figures.get("limits", {})),
    )
    if "n_cells" in figures:
        context._wishes = fewer_cells(context._wishes, figures["n_cells"])
    if "file_bytes" in figures:
        resource.setrlimit(resource.RLIMIT_FSIZE, (figures["file_bytes"],) * 2)
    if figures.get("offline"):
        sys.addaudithook(forbid_network)


def fewer_cells(wishes: Any, n_cells: int) -> Any:
    return lambda *arguments: {**wishes(*arguments), "n_ctx": n_cells}


def forbid_network(event: str, arguments: tuple[Any, ...]) -> None:
    if event in OUTWARD:
        print(f"{event} {arguments!r}", file=sys.stderr, flush=True)
        os._exit(99)


if __name__ == "__main__":
    alter(json.loads(os.environ.get("IGLLAMA_ALTERED", "{}")))
    sys.exit(engine_child.main(sys.argv) if CHILD in sys.argv else igllama.main())
