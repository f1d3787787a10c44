"""The route table: (method, pattern) -> function. `{name}` stands for a part of the path.

In the last segment a parameter takes the rest, slashes included (model ids have them); elsewhere
one segment. HEAD is served by GET's function; OPTIONS is answered for every path.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from re import Pattern
from typing import Generic, NamedTuple, TypeVar

from libloader.web.problems import HttpProblem

F = TypeVar("F")
_PARAMETER = re.compile(r"\{([a-z_]+)\}")


class _Pattern(NamedTuple):
    template: str
    regex: Pattern[str]


class Routes(Generic[F]):
    def __init__(self, table: Mapping[tuple[str, str], F]) -> None:
        self._methods: dict[str, dict[str, F]] = {}
        for (method, template), function in table.items():
            self._methods.setdefault(template, {})[method] = function
        with_parameters = [path for path in self._methods if _PARAMETER.search(path)]
        # The pattern with more fixed text wins: /models/{id}/load before /models/{id}.
        with_parameters.sort(key=lambda path: -len(_PARAMETER.sub("", path)))
        self._patterns = [_Pattern(path, _compile(path)) for path in with_parameters]

    def find(self, method: str, path: str) -> tuple[F, dict[str, str]]:
        """Return the function and its parameters; 404 or 405 (with Allow) if there is none."""
        template, parameters = self._match(path)
        if not template:
            raise HttpProblem(404, self._unknown(path[:200]))
        methods = self._methods[template]
        function = methods.get("GET" if method == "HEAD" else method)
        if function is None:
            allow = ", ".join(_allowed(methods))
            message = f"{path[:200]} is there for {allow}"
            raise HttpProblem(405, message, headers=(("Allow", allow),))
        return function, parameters

    def template(self, path: str) -> str:
        """Return the pattern that serves `path`, "" if there is none."""
        return self._match(path)[0]

    def _match(self, path: str) -> tuple[str, dict[str, str]]:
        if path in self._methods and not _PARAMETER.search(path):
            return path, {}
        for template, regex in self._patterns:
            match = regex.fullmatch(path)
            if match is not None:
                return template, match.groupdict()
        return "", {}

    def _unknown(self, path: str) -> str:
        near = get_close_matches(path, self._methods, 1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        where = "; GET / lists what there is" if "/" in self._methods else ""
        return f"unknown URL: {path}{meant}{where}"


def _compile(template: str) -> Pattern[str]:
    pieces = _PARAMETER.split(template)  # text, name, text, name, ..., text
    pattern = re.escape(pieces[0])
    for name, text in zip(pieces[1::2], pieces[2::2]):
        pattern += f"(?P<{name}>[^/]+)" if text else f"(?P<{name}>.+)"
        pattern += re.escape(text)
    return re.compile(pattern)


def _allowed(methods: Mapping[str, F]) -> list[str]:
    return sorted({*methods, "OPTIONS", *(["HEAD"] if "GET" in methods else [])})
