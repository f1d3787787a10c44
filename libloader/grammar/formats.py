"""The formats of JSON Schema, each twice: a pattern to generate by, and a test of finished text.

The two are written apart on purpose. The pattern is what a grammar can hold, and generates a tidy
part of what is valid (years 1000 to 9999, short host names, no leap seconds); the test accepts all
that the format's standard does, so that it judges the pattern as well as documents from elsewhere.

Laws: every text that a pattern matches passes its test.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import string
from typing import Callable, NamedTuple
from urllib.parse import urlsplit

from libloader.errors import GrammarInvalid
from libloader.grammar.pattern import compile_pattern

_MONTH_AND_DAY = (
    "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_LEAP_YEAR = "(?:[1-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[13579][26])00)"
_DATE = f"(?:[1-9][0-9]{{3}}-{_MONTH_AND_DAY}|{_LEAP_YEAR}-02-29)"
_HOUR_AND_MINUTE = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = f"{_HOUR_AND_MINUTE}:[0-5][0-9](?:\\.[0-9]{{1,6}})?(?:Z|[+-]{_HOUR_AND_MINUTE})"
_N = "[0-9]{1,4}"
_CLOCK = f"T(?:{_N}H(?:{_N}M(?:{_N}S)?)?|{_N}M(?:{_N}S)?|{_N}S)"
_DAYS = f"(?:{_N}Y(?:{_N}M(?:{_N}D)?)?|{_N}M(?:{_N}D)?|{_N}D)"
_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_H = "[0-9a-fA-F]{1,4}"
_IPV6 = "|".join(
    [f"(?:{_H}:){{7}}{_H}", "::", f":(?::{_H}){{1,7}}", f"(?:{_H}:){{1,7}}:"]
    + [f"(?:{_H}:){{{n}}}(?::{_H}){{1,{7 - n}}}" for n in range(1, 7)]
)
_LABEL = "[A-Za-z0-9]{1,15}(?:-[A-Za-z0-9]{1,15}){0,2}"
_HOST = f"{_LABEL}(?:\\.{_LABEL}){{0,4}}"
_PATH_CHAR = "(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
_PATH = f"(?:/{_PATH_CHAR}{{0,40}}){{0,8}}"
_QUERY = f"(?:\\?{_PATH_CHAR}{{1,60}})?(?:#{_PATH_CHAR}{{1,30}})?"
_URI = f"[a-z][a-z0-9+.-]{{1,9}}://{_HOST}(?::[1-9][0-9]{{0,3}})?{_PATH}{_QUERY}"
_ATOM = "[A-Za-z0-9_+-]{1,20}"
_EMAIL = f"{_ATOM}(?:\\.{_ATOM}){{0,2}}@{_LABEL}(?:\\.{_LABEL}){{0,2}}\\.[A-Za-z]{{2,12}}"
_POINTER = "(?:/(?:[^~/]|~[01]){0,40}){0,12}"
_BASE64 = "(?:[A-Za-z0-9+/]{4}){0,1000}(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"


def _is_date(text: str) -> bool:
    try:
        return len(text) == 10 and bool(datetime.date.fromisoformat(text))
    except ValueError:
        return False


def _is_time(text: str) -> bool:
    clock, zone = (text[:-1], "+00:00") if text[-1:] in ("Z", "z") else (text[:-6], text[-6:])
    second, _, fraction = clock.partition(".")
    if clock != second and not _is_digits(fraction):
        return False
    try:
        offset = datetime.time.fromisoformat(zone[1:])
        hour, minute, sec = (int(part) for part in second.split(":") if _is_digits(part, 2))
    except ValueError:
        return False
    if zone[0] not in "+-" or len(zone) != 6 or hour > 23 or minute > 59:
        return False
    ahead = (offset.hour * 60 + offset.minute) * (1 if zone[0] == "+" else -1)
    is_leap = sec == 60 and (hour * 60 + minute - ahead) % 1440 == 1439
    return sec < 60 or is_leap


def _is_date_time(text: str) -> bool:
    return _is_date(text[:10]) and text[10:11] in ("T", "t") and _is_time(text[11:])


def _is_digits(text: str, n_digits: int = 0) -> bool:
    return text.isascii() and text.isdigit() and n_digits in (0, len(text))


def _is_duration(text: str) -> bool:
    """RFC 3339, appendix A: units in their order, none left out between two, or weeks alone."""
    if not text.startswith("P"):
        return False
    days, has_clock, clock = text[1:].partition("T")
    if days.endswith("W") and not has_clock:
        return _is_digits(days[:-1])
    is_whole = (not has_clock or bool(clock)) and bool(days or clock)
    return is_whole and _is_units(days, "YMD") and _is_units(clock, "HMS")


def _is_units(text: str, units: str) -> bool:
    found = "".join(char for char in text if not char.isdigit())
    numbers = text
    for unit in found:
        number, _, numbers = numbers.partition(unit)
        if not _is_digits(number):
            return False
    return not numbers and found in units


def _is_ip(cls: Callable[[str], object]) -> Callable[[str], bool]:
    def is_address(text: str) -> bool:
        try:
            return text.isascii() and "%" not in text and bool(cls(text))
        except ValueError:
            return False

    return is_address


def _is_host(text: str) -> bool:
    labels = text.split(".")
    allowed = set(string.ascii_letters + string.digits + "-")
    return len(text) <= 253 and all(
        0 < len(label) <= 63 and set(label) <= allowed and "-" not in (label[0], label[-1])
        for label in labels
    )


def _is_email(text: str) -> bool:
    local, at, domain = text.rpartition("@")
    if local.startswith('"') and local.endswith('"') and len(local) > 2:
        return bool(at) and _is_host(domain)
    allowed = set(string.ascii_letters + string.digits + "!#$%&'*+-/=?^_`{|}~")
    atoms = local.split(".")
    return bool(at) and all(a and set(a) <= allowed for a in atoms) and _is_host(domain)


def _is_idn_email(text: str) -> bool:
    local, _, domain = text.rpartition("@")
    return bool(local) and " " not in text and bool(domain)


_URI_CHARS = frozenset(string.ascii_letters + string.digits + "-._~:/?#[]@!$&'()*+,;=%")


def _is_reference(text: str) -> bool:
    if not _URI_CHARS.issuperset(text) or text.count("#") > 1:
        return False
    hexes = [part[:2] for part in text.split("%")[1:]]
    if any(len(h) < 2 or not set(h) <= set(string.hexdigits) for h in hexes):
        return False
    try:
        return urlsplit(text).port is None or True
    except ValueError:
        return False


def _is_uri(text: str) -> bool:
    scheme, colon, rest = text.partition(":")
    allowed = set(string.ascii_letters + string.digits + "+.-")
    is_scheme = bool(colon) and scheme[:1].isalpha() and set(scheme) <= allowed
    return is_scheme and _is_reference(text) and not rest.startswith("///") and rest != "//"


def _is_iri(text: str) -> bool:
    return _is_uri("".join(char if char.isascii() else "x" for char in text))


def _is_iri_reference(text: str) -> bool:
    return _is_reference("".join(char if char.isascii() else "x" for char in text))


def _is_uri_template(text: str) -> bool:
    depth = 0
    for char in text:
        depth += {"{": 1, "}": -1}.get(char, 0)
        if depth not in (0, 1):
            return False
    return depth == 0 and " " not in text


def _is_uuid(text: str) -> bool:
    parts = text.split("-")
    is_hex = all(set(part) <= set(string.hexdigits) for part in parts)
    return is_hex and [len(part) for part in parts] == [8, 4, 4, 4, 12]


def _is_pointer(text: str) -> bool:
    tildes = text.replace("~0", "").replace("~1", "")
    return (not text or text.startswith("/")) and "~" not in tildes


def _is_relative_pointer(text: str) -> bool:
    rest = text.lstrip(string.digits)
    number = text[: len(text) - len(rest)]
    is_number = _is_digits(number) and (number == "0" or number[0] != "0")
    return is_number and (rest == "#" or _is_pointer(rest))


def _is_regex(text: str) -> bool:
    try:
        return bool(compile_pattern(text))
    except GrammarInvalid:
        return False


def _is_base64(text: str) -> bool:
    try:
        return base64.b64encode(base64.b64decode(text, validate=True)) is not None
    except ValueError:
        return False


class Format(NamedTuple):
    """`pattern` "" means that no grammar can hold this format."""

    pattern: str
    is_right: Callable[[str], bool]


FORMATS: dict[str, Format] = {
    "date": Format(_DATE, _is_date),
    "time": Format(_TIME, _is_time),
    "date-time": Format(f"{_DATE}T{_TIME}", _is_date_time),
    "duration": Format(f"P(?:{_N}W|{_DAYS}(?:{_CLOCK})?|{_CLOCK})", _is_duration),
    "uuid": Format("[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", _is_uuid),
    "ipv4": Format(f"(?:{_OCTET}\\.){{3}}{_OCTET}", _is_ip(ipaddress.IPv4Address)),
    "ipv6": Format(_IPV6, _is_ip(ipaddress.IPv6Address)),
    "hostname": Format(_HOST, _is_host),
    "idn-hostname": Format(_HOST, lambda text: bool(text) and " " not in text),
    "email": Format(_EMAIL, _is_email),
    "idn-email": Format(_EMAIL, _is_idn_email),
    "uri": Format(_URI, _is_uri),
    "uri-reference": Format(f"{_URI}|{_PATH}{_QUERY}", _is_reference),
    "iri": Format(_URI, _is_iri),
    "iri-reference": Format(f"{_URI}|{_PATH}{_QUERY}", _is_iri_reference),
    "url": Format(_URI, _is_uri),
    "uri-template": Format("(?:[A-Za-z0-9/._-]|\\{[a-z][a-z0-9_]{0,15}\\}){0,60}",
                           _is_uri_template),
    "json-pointer": Format(_POINTER, _is_pointer),
    "relative-json-pointer": Format(f"(?:0|[1-9][0-9]{{0,2}})(?:#|{_POINTER})",
                                    _is_relative_pointer),
    "regex": Format("", _is_regex),
    "byte": Format(_BASE64, _is_base64),
}  # fmt: skip

# Said of strings and numbers by OpenAPI and others; nothing follows for the text.
UNCHECKED = frozenset(["password", "binary", "float", "double", "decimal"])
INTEGER_RANGES = {
    "int8": (-(2**7), 2**7 - 1), "int16": (-(2**15), 2**15 - 1),
    "int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1),
    "uint8": (0, 2**8 - 1), "uint16": (0, 2**16 - 1),
    "uint32": (0, 2**32 - 1), "uint64": (0, 2**64 - 1),
}  # fmt: skip
