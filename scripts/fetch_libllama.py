#!/usr/bin/env python3
"""Get a prebuilt libllama for this platform, or another, into libloader/lib/<platform>/.

    python3 scripts/fetch_libllama.py                          with npm, over the network
    python3 scripts/fetch_libllama.py --from FILE              from what you brought: a release of
                                      llama.cpp (zip, tar.gz), an npm tgz, a wheel, or a folder
    python3 scripts/fetch_libllama.py --platform linux-arm64   for another machine
    python3 scripts/fetch_libllama.py --if-missing             only if no libllama is found

Run again, it checks every file's SHA-256 and needs no network. A fetch that is killed leaves
nothing that is later taken for whole; what npm has brought by then is kept and used by the next
run. Where neither npm nor an archive is at hand, an installed libllama is named: igllama uses it
as it lies.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from libloader import errors  # noqa: E402  (the script runs from anywhere)
from libloader.abi import find, manifest, platforms  # noqa: E402
from scripts import library_archive  # noqa: E402

PACKAGE = "@node-llama-cpp"
DEFAULT_VERSION = "3.22.1"
NPM_PLATFORMS = (
    "linux-x64", "linux-x64-cuda", "linux-x64-cuda-ext", "linux-x64-vulkan", "linux-arm64",
    "linux-armv7l", "linux-riscv64", "mac-arm64-metal", "mac-x64", "win-x64", "win-x64-cuda",
    "win-x64-cuda-ext", "win-x64-vulkan", "win-arm64",
)  # fmt: skip
USUAL_VARIANT = {"mac-arm64": "mac-arm64-metal"}
# What npm says -> what it means. The texts are npm's and Node's error codes.
NO_NETWORK = (
    "ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH",
    "EHOSTUNREACH", "ERR_SOCKET_TIMEOUT", "ENOTCACHED",
)  # fmt: skip
NO_SUCH_PACKAGE = ("E404", "ETARGET")
OTHER_WAYS = (
    "bring a file instead: a llama.cpp release for {platform} (llama-<tag>-bin-...), fetched on a "
    "machine with network, then: python3 scripts/fetch_libllama.py --from FILE"
)


class Options(NamedTuple):
    """The command line, with what follows from this machine filled in."""

    platform: str
    version: str
    version_was_given: bool
    source: Path | None  # --from
    sha256: str
    into: Path
    npm: str  # "" = not installed
    force: bool
    if_missing: bool


class Progress:
    """A bar on a terminal; elsewhere nothing but its last state."""

    WIDTH = 30

    def __init__(self, label: str, total_bytes: int, stream: TextIO) -> None:
        self.label, self.total_bytes, self.stream = label, total_bytes, stream
        self.done_bytes, self.started, self.drawn = 0, time.monotonic(), 0.0

    def add(self, n_bytes: int) -> None:
        self.done_bytes += n_bytes
        self._draw()

    def wait(self) -> None:
        """Show that something goes on whose size is not known."""
        self._draw()

    def close(self) -> None:
        """Leave the last state as a line."""
        self._write(self._line() + "\n")

    def _draw(self) -> None:
        now = time.monotonic()
        if self.stream.isatty() and now - self.drawn > 0.1:
            self.drawn = now
            self._write(self._line())

    def _write(self, text: str) -> None:
        self.stream.write(f"\r{text}" if self.stream.isatty() else text)
        self.stream.flush()

    def _line(self) -> str:
        elapsed = f"{time.monotonic() - self.started:.0f} s"
        if not self.total_bytes:
            return f"{self.label}: {elapsed}"
        share = min(1.0, self.done_bytes / self.total_bytes)
        bar = "#" * round(share * self.WIDTH)
        n_mib = f"{self.done_bytes / 2**20:.1f} of {self.total_bytes / 2**20:.1f} MiB"
        return f"{self.label}: [{bar:<{self.WIDTH}}] {share:4.0%} {n_mib}, {elapsed}"


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    try:
        fetch(options)
    except errors.UsageError as exc:
        print(f"fetch_libllama: {exc}", file=sys.stderr)
        return 2
    except (errors.IgllamaError, OSError) as exc:
        print(f"fetch_libllama: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nfetch_libllama: stopped; nothing half-made was left", file=sys.stderr)
        return 130
    return 0


def parse(arguments: Sequence[str]) -> Options:
    here = str(platforms.here())
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--platform", default=USUAL_VARIANT.get(here, here), help="default: %(default)s")
    add("--version", help=f"of npm's packages; default: {DEFAULT_VERSION}")
    add("--from", dest="source", type=Path, metavar="FILE", help="an archive or a folder")
    add("--sha256", default="", help="what the archive's SHA-256 must be")
    add("--into", type=Path, default=ROOT / "libloader" / "lib", metavar="DIR", help="%(default)s")
    add("--npm", default=shutil.which("npm") or "", metavar="FILE", help="the npm to run")
    add("--force", action="store_true", help="replace what is there")
    add("--if-missing", action="store_true", help="do nothing if a libllama is found")
    values = parser.parse_args(arguments)
    if not re.fullmatch(r"[a-z]+(-[a-z0-9_]+){1,3}", values.platform):
        parser.error(f"--platform {values.platform!r} is no name like {', '.join(NPM_PLATFORMS)}")
    if values.version and not re.fullmatch(r"\d+\.\d+\.\d+(-[\w.]+)?", values.version):
        parser.error(f"--version {values.version!r} is no version like {DEFAULT_VERSION}")
    return Options(
        platform=values.platform,
        version=values.version or DEFAULT_VERSION,
        version_was_given=bool(values.version),
        source=values.source,
        sha256=values.sha256.lower(),
        into=values.into,
        npm=values.npm,
        force=values.force,
        if_missing=values.if_missing,
    )


def fetch(options: Options) -> None:
    """Make sure that the folder of the platform is there and whole. Prints what it did."""
    final = options.into / options.platform
    if options.if_missing and _say_installed("a libllama is there", options):
        return
    if not options.force and _is_there(final, options):
        return
    options.into.mkdir(parents=True, exist_ok=True)
    if options.source is not None:
        install(options.source, f"file {options.source.name}", options)
        return
    try:
        install(_npm_archive(options), f"npm {_package(options)}", options)
    except errors.StartError as exc:
        _forget(_kept(options))
        if not _say_installed(f"{exc}\nAn installed libllama will be used", options):
            raise
    else:
        _forget(_kept(options))


def install(archive: Path, source: str, options: Options) -> None:
    """Unpack the libraries in `archive` to the platform's folder, checked before they appear."""
    if not archive.exists():
        raise errors.UsageError(f"there is no {archive}")
    if archive.is_file():
        source = f"{source} sha256 {_checked_sha256(archive, options.sha256)}"
    final = options.into / options.platform
    with library_archive.opened(archive) as items:
        chosen = library_archive.choose(items, options.platform)
        progress = Progress(f"unpacking {archive.name}", chosen.n_bytes, sys.stderr)
        with manifest.staged(final) as folder:
            files = manifest.write(folder, chosen.members, progress.add)
            manifest.write_manifest(folder, manifest.Manifest(options.platform, source, files))
            library_archive.check_usable(folder, options.platform)
        progress.close()
    _say_done(final, files)


def _is_there(final: Path, options: Options) -> bool:
    """Whether `final` holds what is asked for; UsageError if it holds somebody else's files."""
    if not final.exists():
        return False
    try:
        known = manifest.load(final)
    except errors.LibraryRefused as exc:
        print(f"{final}: {exc}; it is fetched again")
        return False
    if known is None:
        raise errors.UsageError(f"{final} was not made by this script; --force replaces it")
    wrong = manifest.verify(final, known)
    if wrong:
        print(f"{final}: {wrong}; it is fetched again")
        return False
    if not _is_asked_for(known.source, options):
        print(f"{final} holds {known.source}; it is replaced")
        return False
    print(f"{final} is there and whole: {known.source}")
    return True


def _is_asked_for(source: str, options: Options) -> bool:
    if options.source is not None:
        return False
    return not options.version_was_given or source.startswith(f"npm {_package(options)} ")


def _say_installed(words: str, options: Options) -> bool:
    """Name the first libllama that nothing speaks against, if this machine has one."""
    if platforms.parse(options.platform) != platforms.here():
        return False
    fit = [candidate for candidate in find.candidates() if not candidate.refusal]
    if fit:
        print(f"{words}: {fit[0].path} ({fit[0].origin})")
    return bool(fit)


# npm --------------------------------------------------------------------------------------------


def _package(options: Options) -> str:
    return f"{PACKAGE}/{options.platform}@{options.version}"


def _npm_archive(options: Options) -> Path:
    """Return the archive that npm brings, checked by npm; one brought before is used again.

    npm writes into a folder of its own; the archive moves to its place only when npm has ended
    well, so what lies there is whole.
    """
    if not options.npm:
        raise errors.LibraryNotFound(
            "npm, which fetches libllama, is not installed. Install Node.js, or "
            + OTHER_WAYS.format(platform=options.platform)
        )
    if options.platform not in NPM_PLATFORMS:
        raise errors.UsageError(
            f"npm has no package for {options.platform}, only for {', '.join(NPM_PLATFORMS)}; "
            + OTHER_WAYS.format(platform=options.platform)
        )
    kept = _kept(options)
    if kept.exists():
        print(f"using {kept}, which an earlier run brought")
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        _run_npm(options, Path(folder))
        archives = list(Path(folder).glob("*.tgz"))
        if len(archives) != 1:
            raise errors.LibraryNotFound(f"{options.npm} pack ended well but wrote no archive")
        os.replace(archives[0], kept)
    return kept


def _kept(options: Options) -> Path:
    return options.into / ".download" / f"{options.platform}-{options.version}" / "package.tgz"


def _forget(archive: Path) -> None:
    """Remove what npm brought, once it is installed or known to be useless."""
    with contextlib.suppress(FileNotFoundError):
        archive.unlink()
    for folder in (archive.parent, archive.parent.parent):
        with contextlib.suppress(OSError):  # never made, or another fetch is at work in it
            folder.rmdir()


def _run_npm(options: Options, folder: Path) -> None:
    command = [options.npm, "pack", _package(options), "--ignore-scripts", "--fetch-retries=1"]
    progress = Progress(f"npm fetches {_package(options)}", 0, sys.stderr)
    with subprocess.Popen(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, encoding="utf-8", errors="replace",
    ) as process:  # fmt: skip
        try:
            output = None
            while output is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    output, _ = process.communicate(timeout=0.2)
                progress.wait()
        except BaseException:
            process.kill()
            raise
    progress.close()
    if process.returncode:
        raise errors.LibraryNotFound(_npm_failed(output, options))


def _npm_failed(output: str, options: Options) -> str:
    """Put npm's own words into ours."""
    ways = OTHER_WAYS.format(platform=options.platform)
    if any(code in output for code in NO_NETWORK):
        return f"npm reaches no package registry: there is no network, or a proxy is needed; {ways}"
    if any(code in output for code in NO_SUCH_PACKAGE):
        return (
            f"npm's registry has no {_package(options)}: name another with --version "
            f"(npm view {PACKAGE}/{options.platform} versions), or {ways}"
        )
    said = [line for line in output.splitlines() if line.strip()][-3:]
    return f"npm pack failed: {' / '.join(said)}; {ways}"


# Checks -----------------------------------------------------------------------------------------


def _checked_sha256(archive: Path, wanted: str) -> str:
    with open(archive, "rb") as file:
        found = manifest.hash_of(file)
    if wanted and wanted != found:
        raise errors.LibraryRefused(
            f"{archive.name} has SHA-256 {found}, not {wanted}: it is damaged or another file"
        )
    return found


def _say_done(final: Path, files: dict[str, manifest.Entry]) -> None:
    n_mib = sum(entry.n_bytes for entry in files.values()) / 2**20
    print(f"{final}: {len(files)} files, {n_mib:.1f} MiB, SHA-256 of each in {manifest.NAME}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
