#!/usr/bin/env python3
"""Compare a llama.h with the struct layouts and functions that libloader/abi knows.

    abi_check.py --header llama.h                       what changed; exit code 1 if anything did
    abi_check.py --header llama.h --since b10500 --write     also write layouts/b10500.py
    abi_check.py --header llama.h --since b10500 --write --lib libllama.so   with observed defaults
    abi_check.py --notes FOLDER                         rebuild every table from the team's notes

Files in libloader/abi/layouts are made here and never edited by hand. A header gives fields, order
and types; default values are observations: taken from `--lib`, else kept from the older layout.
FOLDER holds layouts.json and symbols.json: the layouts that occur in no header at hand, and the
builds that brought and removed each function.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from libloader.abi import builds, layouts, prototypes, structs  # noqa: E402

LAYOUT_FOLDER = ROOT / "libloader" / "abi" / "layouts"

# Structs that we lay out ourselves, and the letters of their layout ids.
TRACKED = {
    "llama_model_params": "M",
    "llama_context_params": "C",
    "llama_batch": "B",
    "llama_sampler_chain_params": "SC",
    "llama_token_data": "TD",
    "llama_token_data_array": "TA",
    "llama_logit_bias": "LB",
    "llama_perf_context_data": "PC",
    "llama_sampler_seq_config": "SQ",
}
TYPED_POINTERS = ("llama_batch",)  # elsewhere every pointer is "ptr": we only store addresses

SCALARS = {
    "bool": "bool",
    "int8_t": "i8",
    "char": "i8",
    "int": "i32",
    "int32_t": "i32",
    "uint32_t": "u32",
    "int64_t": "i64",
    "uint64_t": "u64",
    "size_t": "size",
    "float": "f32",
    "double": "f64",
    "llama_token": "i32",
    "llama_pos": "i32",
    "llama_seq_id": "i32",
    "llama_state_seq_flags": "u32",
    "void": "void",
}
# Typedefs of other headers, and opaque handles: all of them pointers.
POINTERS = re.compile(r"(.*_callback|ggml_backend_\w+_t|ggml_threadpool_t|llama_memory_t|fnptr)\Z")

Field = tuple[str, str]  # name, C type word


class Header(NamedTuple):
    structs: dict[str, tuple[Field, ...]]
    functions: dict[str, tuple[str, tuple[str, ...]]]  # name -> (result, arguments), type words


class UnknownType(Exception):
    """A C type whose size we cannot tell; add it to SCALARS or POINTERS."""


# --- the header parser --------------------------------------------------------------------------


def read_header(text: str) -> Header:
    """Parse the tracked structs and all LLAMA_API functions of a llama.h."""
    text = _without_noise(text)
    found = {
        name: _fields(name, body)
        for name, body in re.findall(r"\bstruct\s+(\w+)\s*(\{.*?\})\s*\w*\s*;", text, re.S)
        if name in TRACKED
    }
    calls = re.findall(r"\bLLAMA_API\s+([\w\s*]+?)(\w+)\s*\(([^()]*(?:\([^()]*\)[^()]*)*)\)", text)
    return Header(found, {name: _signature(result, args) for result, name, args in calls})


def _without_noise(text: str) -> str:
    """Drop comments, preprocessor lines and the DEPRECATED( around a declaration."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", text, flags=re.S)
    text = re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*$", "", text, flags=re.M)
    return re.sub(r"\bDEPRECATED\s*\(", " ", text)


def _fields(struct: str, body: str) -> tuple[Field, ...]:
    typed = struct in TYPED_POINTERS
    fields: list[Field] = []
    for declaration in body.strip("{} \n").split(";"):
        if declaration.strip():
            fields.extend(_declared(declaration.strip(), typed))
    return tuple(fields)


def _declared(declaration: str, typed: bool) -> Iterable[Field]:
    """Yield the fields of one declaration: `float a, b`, `void * p`, `bool (*f)(int)`."""
    function = re.match(r".*?\(\s*\*\s*(\w+)\s*\)\s*\(", declaration, re.S)
    if function:
        yield function.group(1), "ptr"
        return
    first, *others = declaration.split(",")
    match = re.match(r"(.*?)(\w+)\s*\Z", first.strip(), re.S)
    assert match, declaration
    c_type = match.group(1)
    for name in [match.group(2), *(other.strip() for other in others)]:
        yield name, type_word(c_type, typed)


def _signature(result: str, arguments: str) -> tuple[str, tuple[str, ...]]:
    words = [_argument(a) for a in _split_arguments(arguments) if a.strip() not in ("", "void")]
    return type_word(result, True, strings=True), tuple(words)


def _split_arguments(arguments: str) -> list[str]:
    return re.sub(r"\([^()]*\)\s*\([^()]*\)", "fnptr callback", arguments).split(",")


def _argument(text: str) -> str:
    match = re.match(r"\s*(.*?)(\w+)\s*(\[[^\]]*\])?\s*\Z", text, re.S)
    assert match, text
    return type_word(match.group(1) + ("*" if match.group(3) else ""), True, strings=True)


def type_word(c_type: str, typed: bool, strings: bool = False) -> str:
    """Return the word of `structs.C_TYPES` for a C type; struct names stay as they are."""
    base = re.sub(r"\b(const|struct)\b", " ", c_type)
    stars = base.count("*")
    base = base.replace("*", " ").strip()
    if strings and stars == 1 and base == "char":
        return "str"
    if stars:
        word = SCALARS.get(base, "ptr") + "*" * stars
        return word if typed and word in structs.C_TYPES else "ptr"
    if base.startswith("enum "):
        return "enum"
    if POINTERS.match(base):
        return "ptr"
    if base in SCALARS or strings:
        return SCALARS.get(base, base)
    raise UnknownType(f"the size of {c_type.strip()!r} is not known: add it to SCALARS or POINTERS")


# --- what changed -------------------------------------------------------------------------------


def changed_structs(header: Header) -> dict[str, tuple[Field, ...]]:
    """Return the tracked structs whose fields equal no known layout's."""
    changed = {}
    for name, fields in header.structs.items():
        known = [layout_fields(layout.rows) for layout in layouts.of(name)]
        if fields not in known:
            changed[name] = fields
    return changed


def layout_fields(rows: Sequence[structs.Row]) -> tuple[Field, ...]:
    return tuple((row[0], row[1]) for row in rows)


def report(header: Header) -> list[str]:
    """Return what a person has to look at; empty if the header says nothing new."""
    changed = changed_structs(header)
    lines = [_struct_difference(name, fields) for name, fields in changed.items()]
    lines += [f"{name} is not in this header" for name in TRACKED if name not in header.structs]
    lines += list(_function_differences(header))
    return lines


def _struct_difference(name: str, fields: tuple[Field, ...]) -> str:
    newest = layouts.of(name)[-1]
    old = layout_fields(newest.rows)
    gone = [field for field, _ in old if field not in dict(fields)]
    new = [field for field, _ in fields if field not in dict(old)]
    kept = [field for field, _ in fields if field in dict(old)]
    moved = [field for field, _ in old if field in kept] != kept
    parts = [f"new: {', '.join(new)}" if new else "", f"gone: {', '.join(gone)}" if gone else ""]
    parts.append("order changed" if moved else "")
    retyped = [f for f, word in fields if dict(old).get(f, word) != word]
    parts.append(f"type changed: {', '.join(retyped)}" if retyped else "")
    return f"{name} differs from {newest.id}: " + "; ".join(part for part in parts if part)


def _function_differences(header: Header) -> Iterable[str]:
    for name, result, arguments in prototypes.PROTOTYPES:
        if not name.startswith("llama_"):
            continue
        if name not in header.functions:
            yield f"{name} is gone"
            continue
        ours = _spoken(result, arguments.split())
        theirs = _spoken(*header.functions[name])
        if ours != theirs:
            yield f"{name} changed from {ours} to {theirs}"


def _spoken(result: str, arguments: Sequence[str]) -> str:
    return f"{_plain(result)}({', '.join(_plain(word) for word in arguments)})"


def _plain(word: str) -> str:
    """Reduce a type word to what matters in a call: all pointers are alike, enums are ints."""
    if word in prototypes.HANDLES or word.endswith("*") or word == "str":
        return "ptr"
    short = {"model_params": "llama_model_params", "context_params": "llama_context_params"}
    short.update({"batch": "llama_batch", "chain_params": "llama_sampler_chain_params"})
    short.update({"perf_context": "llama_perf_context_data", "enum": "i32"})
    return short.get(word, word)


# --- writing layout modules ---------------------------------------------------------------------


class Layout(NamedTuple):
    struct: str
    id: str
    since: str
    rows: tuple[structs.Row, ...]


def render(since: str, members: Sequence[Layout]) -> str:
    """Return the text of layouts/<since>.py."""
    head = f'"""Structs of llama.h that changed at {since}. Made by scripts/abi_check.py."""'
    parts = [head, "", "from libloader.abi.structs import Table", ""]
    parts += [f'SINCE = "{since}"', "", "STRUCTS: Table = {"]
    for layout in members:
        parts += [f'    "{layout.struct}": (', f'        "{layout.id}",', "        ("]
        parts.append("            # field, C type, default values seen (empty: not checked)")
        for name, c_type, values in layout.rows:
            parts.append(f'            ("{name}", "{c_type}", {values!r}),')
        parts += ["        ),", "    ),"]
    return "\n".join([*parts, "}", ""])


def module_name(since: str) -> str:
    return since.replace(".", "_").replace("-", "_")


def inherit(
    struct: str, fields: Sequence[Field], observed: dict[str, float]
) -> tuple[structs.Row, ...]:
    """Give each field its default values: observed, else those of the newest known layout."""
    older = {row[0]: row[2] for row in layouts.of(struct)[-1].rows}
    rows = []
    for name, c_type in fields:
        values = set(older.get(name, ()))
        values.update([observed[name]] if name in observed else [])
        rows.append((name, c_type, tuple(sorted(values))))
    return tuple(rows)


def new_layouts(header: Header, since: str, library: str = "") -> list[Layout]:
    """Return a layout for every changed struct, numbered after the newest known one."""
    result = []
    for name, fields in changed_structs(header).items():
        number = len(layouts.of(name))
        rows = inherit(name, fields, observe(library, name, fields) if library else {})
        result.append(Layout(name, f"{TRACKED[name]}{number}", since, rows))
    return result


def observe(library: str, struct: str, fields: Sequence[Field]) -> dict[str, float]:
    """Return the defaults that a library's *_default_params() gives; {} for other structs."""
    from libloader.abi import detect  # only this option loads native code
    from libloader.abi import library as loader

    if struct not in detect.DEFAULT_FUNCTIONS:
        return {}
    handle = loader.open_library(library).handle
    probe = detect.probe_defaults(handle, detect.DEFAULT_FUNCTIONS[struct])
    rows = tuple((name, word, ()) for name, word in fields)
    return {name: value for name, value in detect.values_of(rows, probe.data)}


# --- the team's notes ---------------------------------------------------------------------------


def layouts_from_notes(notes: dict[str, Any]) -> list[Layout]:
    """Return every layout of a tracked struct in layouts.json, oldest first."""
    result = []
    for struct in TRACKED:
        versions = notes["structs"][struct]
        for version in versions:
            allowed = _seen_near(notes["builds"], struct, versions, version["id"])
            rows = tuple(_row_of_note(struct, field, allowed) for field in version["fields"])
            result.append(Layout(struct, version["id"], version["upstream_first"], rows))
    return result


def _row_of_note(struct: str, field: dict[str, Any], allowed: dict[str, set]) -> structs.Row:
    word = type_word(field["ctype"], struct in TYPED_POINTERS)
    return field["name"], word, tuple(sorted(allowed.get(field["name"], ())))


def _seen_near(
    builds_seen: Sequence[dict[str, Any]], struct: str, versions: Sequence[Any], wanted: str
) -> dict[str, set]:
    """Collect default values seen in builds of this layout and of its nearest neighbours.

    The neighbours count because a default may move before or after the layout does.
    """
    ids = [version["id"] for version in versions]
    have = [i for i in ids if any(build.get(struct) == i for build in builds_seen)]
    before = [i for i in have if ids.index(i) < ids.index(wanted)][-1:]
    after = [i for i in have if ids.index(i) > ids.index(wanted)][:1]
    allowed: dict[str, set] = {}
    for build in builds_seen:
        if build.get(struct) in (*before, wanted, *after):
            for name, value in build.get(f"{struct}_defaults", {}).items():
                allowed.setdefault(name, set()).add(value)
    return allowed


def render_index(sinces: Sequence[str]) -> str:
    """Return the text of layouts/modules.py, which names every layout module in build order."""
    names = [module_name(since) for since in sorted(sinces, key=builds.order)]
    head = '"""Every layout module, oldest first. Made by scripts/abi_check.py."""'
    listed = "\n".join(f"    {name}," for name in names)
    return (
        f"{head}\n\nfrom libloader.abi.layouts import (\n{listed}\n)\n\nMODULES = (\n{listed}\n)\n"
    )


def exports_from_notes(notes: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return (function, first build, first build without it or "") for every distinct interval."""
    chosen: dict[tuple[str, str], str] = {}
    ours = {row[0] for row in prototypes.PROTOTYPES}
    for name, history in notes["history"].items():
        last = history[-1]
        interval = (history[0]["from"], last["from"] if last.get("removed") else "")
        if interval not in chosen or name in ours and chosen[interval] not in ours:
            chosen[interval] = name
    rows = [(name, first, end) for (first, end), name in chosen.items()]
    return sorted(rows, key=lambda row: (builds.order(row[1]), row[0]))


def render_exports(rows: Sequence[tuple[str, str, str]]) -> str:
    lines = [f'    ("{name}", "{first}", "{end}"),' for name, first, end in rows]
    return "\n".join(
        [
            '"""Which builds export which function. Made by scripts/abi_check.py."""',
            "",
            "EXPORTS = (",
            '    # function, first build (b3600: or older), first build without it ("": none)',
            *lines,
            ")",
            "",
        ]
    )


def rebuild(notes_folder: pathlib.Path, target: pathlib.Path) -> list[pathlib.Path]:
    """Write every generated file from the notes; return their paths."""
    known = layouts_from_notes(json.loads((notes_folder / "layouts.json").read_text()))
    symbols = json.loads((notes_folder / "symbols.json").read_text())
    written = {target / "exports.py": render_exports(exports_from_notes(symbols))}
    sinces = sorted({layout.since for layout in known}, key=builds.order)
    for since in sinces:
        members = [layout for layout in known if layout.since == since]
        written[target / f"{module_name(since)}.py"] = render(since, members)
    written[target / "modules.py"] = render_index(sinces)
    for path, text in written.items():
        path.write_text(text)
    return list(written)


# --- the command --------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if options.notes:
        for path in rebuild(options.notes, options.folder):
            print(f"wrote {path}")
        return 0
    header = read_header(options.header.read_text(errors="replace"))
    lines = report(header)
    print("\n".join(lines) if lines else "nothing changed")
    if options.write and changed_structs(header):
        _write(header, options)
    return 1 if lines else 0


def _write(header: Header, options: argparse.Namespace) -> None:
    path = options.folder / f"{module_name(options.since)}.py"
    path.write_text(render(options.since, new_layouts(header, options.since, options.lib)))
    sinces = [module.SINCE for module in layouts.MODULES] + [options.since]
    (options.folder / "modules.py").write_text(render_index(sinces))
    print(f"wrote {path} and listed it in modules.py")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--header", type=pathlib.Path, help="a llama.h")
    source.add_argument("--notes", type=pathlib.Path, help="a folder with layouts.json")
    parser.add_argument("--since", default="", help="the build of the header, such as b10500")
    parser.add_argument("--write", action="store_true", help="write layouts/<since>.py")
    parser.add_argument("--lib", default="", help="a libllama of that build: observe its defaults")
    parser.add_argument("--folder", type=pathlib.Path, default=LAYOUT_FOLDER, help="where to write")
    options = parser.parse_args(arguments)
    if options.write and not options.since:
        parser.error("--write needs --since")
    return options


if __name__ == "__main__":
    sys.exit(main())
