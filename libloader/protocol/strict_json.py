"""Strict JSON for request bodies: what two parsers could read differently is refused.

Laws:
- UTF-8 only (a BOM is let through), one object, no trailing text, nesting of at most MAX_DEPTH.
- No NaN, Infinity or number that overflows to one; no integer of more than MAX_DIGITS digits.
- No lone surrogate, no key twice in one object.
- The cost is linear in the size of the body, and nesting is bounded before the recursive parser
  of the standard library sees it: HTTP threads have small stacks.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from libloader.errors import BodyInvalid

MAX_DEPTH = 128
MAX_DIGITS = 40
_STRINGS_AND_BRACKETS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[{]|[\]}]', re.DOTALL)
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in `body`; raise BodyInvalid with a sentence that says what to fix."""
    text = _decode(body)
    _check_depth(text)
    value = _loads(text)
    if not isinstance(value, dict):
        raise BodyInvalid(f"the body must be a JSON object, not {_kind(value)}")
    if _SURROGATE_ESCAPE.search(text):
        _check_surrogates(value)
    return value


def _decode(body: bytes) -> str:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise BodyInvalid(
            f"the body must be UTF-8; byte {exc.start} (0x{body[exc.start]:02x}) is not"
        ) from None
    if not text.strip(" \t\r\n"):
        raise BodyInvalid("the body is empty; send a JSON object, for example with curl -d '{...}'")
    return text


def _check_depth(text: str) -> None:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for match in _STRINGS_AND_BRACKETS.finditer(text):
        first = text[match.start()]
        if first in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise BodyInvalid(f"the body is nested deeper than {MAX_DEPTH} levels")
        elif first in "]}":
            depth -= 1


class _Unfit(ValueError):
    """A number that JSON allows and we refuse, or that Python allows and JSON does not."""


def _loads(text: str) -> Any:
    try:
        return json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_bounded_int,
            object_pairs_hook=_no_duplicates,
        )
    except _Unfit as exc:
        raise BodyInvalid(str(exc), param=_path_of_unfit(text)) from None
    except json.JSONDecodeError as exc:
        raise BodyInvalid(
            f"the body is not valid JSON: {_lower_first(exc.msg)} "
            f"at line {exc.lineno} column {exc.colno}"
        ) from None
    except RecursionError:
        raise BodyInvalid(f"the body is nested deeper than {MAX_DEPTH} levels") from None


def _lower_first(message: str) -> str:
    return message[:1].lower() + message[1:]


def _refuse_constant(name: str) -> NoReturn:
    raise _Unfit(f"{name} is not a JSON number; leave the field out for its default")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _Unfit(f"the number {digits[:MAX_DIGITS]} is too large")
    return value


def _bounded_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise _Unfit(f"an integer has {len(digits)} digits; at most {MAX_DIGITS} are taken")
    return int(digits)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen = set()
        for key, _ in pairs:
            if key in seen:
                raise BodyInvalid(
                    f"the key {key[:80]!r} appears twice in one object", param=key[:80]
                )
            seen.add(key)
    return result


def _path_of_unfit(text: str) -> str | None:
    """Say where the refused number is: parse again with a marker in its place. Errors only."""
    marker = object()

    def number(digits: str) -> Any:
        return marker if len(digits) > MAX_DIGITS or not math.isfinite(float(digits)) else 0

    try:
        value = json.loads(
            text, parse_constant=lambda _: marker, parse_float=number, parse_int=number
        )
    except (ValueError, RecursionError):
        return None
    return next((path for path, item in _walk(value) if item is marker), None)


def _check_surrogates(value: Any) -> None:
    for path, item in _walk(value):
        if isinstance(item, str) and _SURROGATE.search(item):
            raise BodyInvalid(
                "a string holds half of a surrogate pair (\\ud800-\\udfff)", param=path
            )


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield (path, item) for each key and each leaf; depth is bounded by MAX_DEPTH."""
    stack: list[tuple[str, Any]] = [("", value)]
    while stack:
        path, item = stack.pop()
        if isinstance(item, dict):
            for key, child in item.items():
                inner = f"{path}.{key}" if path else key
                yield inner, key
                stack.append((inner, child))
        elif isinstance(item, list):
            stack.extend((f"{path}[{i}]", child) for i, child in enumerate(item))
        else:
            yield path, item


def _kind(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
