#!/usr/bin/env python3
"""Build igllama as one file that runs anywhere with Python 3.9 or newer and nothing beside it.

    python3 scripts/build_pyz.py -o igllama                 libllama is searched on each machine
    python3 scripts/build_pyz.py -o igllama --with-lib      the fetched library travels inside
    python3 scripts/build_pyz.py -o igllama --with-lib libloader/lib/linux-arm64 --with-lib

The result is a zip with a line for the shell before it: `python3 igllama api model.gguf`, or
`./igllama api model.gguf`; any name will do. The same tree gives the same bytes: names are sorted,
times fixed, sources stored as they are (and so start faster); only libraries are compressed, with
whatever zlib this Python has. Libraries of several platforms may travel in one file.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import stat
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from libloader import errors  # noqa: E402  (the script runs from anywhere)
from libloader.abi import manifest, platforms, unpack  # noqa: E402
from scripts import library_archive  # noqa: E402

SHEBANG = b"#!/usr/bin/env python3\n"
FIXED_TIME = (1980, 1, 1, 0, 0, 0)  # the oldest that a zip can hold
# Old Pythons must be able to parse this much, to say what they lack.
MAIN = """\
import sys

if sys.version_info < (3, 9):
    sys.exit("igllama needs Python 3.9 or newer, this is %d.%d" % sys.version_info[:2])

import igllama

sys.exit(igllama.main())
"""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("-o", "--output", type=Path, required=True, metavar="FILE", help="the file to write")
    add(
        "--with-lib",
        action="append",
        nargs="?",
        const="",
        default=[],
        metavar="DIR",
        help="put the libllama in DIR inside; default: the one that fetch_libllama.py brought",
    )
    values = parser.parse_args(arguments)
    try:
        build(values.output, [_library_folder(named) for named in values.with_lib])
    except (errors.IgllamaError, OSError) as exc:
        print(f"build_pyz: {exc}", file=sys.stderr)
        return 1
    with open(values.output, "rb") as file:
        n_mib = values.output.stat().st_size / 2**20
        print(f"{values.output}: {n_mib:.1f} MiB, sha256 {manifest.hash_of(file)}")
    return 0


def build(output: Path, library_folders: Sequence[Path] = ()) -> None:
    """Write the single file; `output` appears, or changes, only when it is whole."""
    with _replacing(output) as file:
        file.write(SHEBANG)
        with zipfile.ZipFile(file, "w") as archive:
            _add(archive, "__main__.py", io.BytesIO(MAIN.encode()))
            for name, path in sources(ROOT):
                _add(archive, name, io.BytesIO(path.read_bytes()))
            for folder in library_folders:
                _add_library(archive, folder)


def sources(root: Path) -> list[tuple[str, Path]]:
    """Return (name in the file, path) of all that igllama needs at run time, sorted by name."""
    found = [(name, root / name) for name in ("LICENSE", "igllama.py")]
    for path in (root / "libloader").rglob("*"):
        inside = path.relative_to(root)
        fetched = inside.parts[:2] == ("libloader", "lib")
        hidden = any(part.startswith((".", "__pycache__")) for part in inside.parts)
        if path.is_file() and path.suffix != ".pyc" and not fetched and not hidden:
            found.append((inside.as_posix(), path))
    return sorted(found)


def _library_folder(named: str) -> Path:
    """Return the folder named with --with-lib, or this platform's fetched one."""
    if named:
        return Path(named)
    parent = ROOT / "libloader" / "lib"
    names = sorted(path.name for path in parent.glob("*") if (path / manifest.NAME).is_file())
    fitting = platforms.folders_for(platforms.here(), names)
    if not fitting:
        raise errors.LibraryNotFound(
            f"no libllama for {platforms.here()} in {parent}: run scripts/fetch_libllama.py, "
            "or name a folder: --with-lib DIR"
        )
    return parent / fitting[0]


def _add_library(archive: zipfile.ZipFile, folder: Path) -> None:
    """Put the libraries of `folder` inside, with the manifest that `unpack` checks them against."""
    known = manifest.load(folder)
    wrong = manifest.verify(folder, known) if known else ""
    if wrong:
        raise errors.LibraryRefused(f"{folder}: {wrong}; fetch it again")
    name = known.platform if known else _platform_name(folder)
    library_archive.check_usable(folder, name)
    with library_archive.opened(folder) as items:
        members = library_archive.choose(items, name).members
        prefix = f"{unpack.PREFIX}{manifest.check_name(name)}/"
        files = {m.name: _add_member(archive, prefix, m) for m in sorted(members)}
    content = manifest.Manifest(name, known.source if known else f"folder {folder.name}", files)
    _add(archive, prefix + manifest.NAME, io.BytesIO(manifest.dump(content).encode()))


def _platform_name(folder: Path) -> str:
    """Of a folder without a manifest: its name, if that is a platform's, else this machine's."""
    named = folder.name.startswith(("linux-", "mac-", "win-"))
    return folder.name if named else str(platforms.here())


def _add_member(archive: zipfile.ZipFile, prefix: str, member: manifest.Member) -> manifest.Entry:
    if member.link:  # stands in the manifest only
        return manifest.Entry(link=member.link)
    with member.open() as source:
        return _add(archive, prefix + member.name, source, zipfile.ZIP_DEFLATED)


def _add(
    archive: zipfile.ZipFile, name: str, source: IO[bytes], compression: int = zipfile.ZIP_STORED
) -> manifest.Entry:
    info = zipfile.ZipInfo(name, FIXED_TIME)
    info.compress_type = compression
    info.create_system = 3  # Unix on every system, or the bytes would differ
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    digest, n_bytes = hashlib.sha256(), 0
    with archive.open(info, "w") as target:
        for chunk in iter(lambda: source.read(manifest.CHUNK_BYTES), b""):
            target.write(chunk)
            digest.update(chunk)
            n_bytes += len(chunk)
    return manifest.Entry(digest.hexdigest(), n_bytes)


@contextlib.contextmanager
def _replacing(output: Path) -> Iterator[IO[bytes]]:
    """Yield a file that becomes `output`, executable, when the block ends well."""
    output.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{output.name}.", dir=output.parent)
    try:
        with open(handle, "w+b") as file:
            yield file
        os.chmod(temporary, 0o755)
        os.replace(temporary, output)
    except BaseException:
        os.unlink(temporary)
        raise


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
