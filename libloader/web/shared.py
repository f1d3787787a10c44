"""What all connections of one server share."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Callable, NamedTuple

from libloader.web.admission import Admission, BodyBudget
from libloader.web.auth import ApiKeys
from libloader.web.crew import Crew
from libloader.web.origins import Origins
from libloader.web.problems import HttpProblem, Reply
from libloader.web.request import Head
from libloader.web.routes import Routes
from libloader.web.settings import WebSettings
from libloader.web.watch import Watcher

if TYPE_CHECKING:  # ssl may be missing; an exchange holds this; its functions are only named here
    import ssl

    from libloader.web.exchange import Exchange

RouteFunction = Callable[["Exchange"], None]
RouteTable = Mapping[tuple[str, str], RouteFunction]
DescribeError = Callable[[BaseException], Reply]


class Pass(NamedTuple):
    """What a head that may pass leads to."""

    function: RouteFunction
    path_params: dict[str, str]
    api_key: str  # the name of the key


class Shared:
    def __init__(
        self,
        settings: WebSettings,
        routes: RouteTable,
        origins: Origins,
        describe_error: DescribeError,
        tls_context: ssl.SSLContext | None = None,
    ) -> None:
        self.settings = settings
        self.routes = Routes(routes)
        self.origins = origins
        self.describe_error = describe_error
        self.tls_context = tls_context
        self.keys = ApiKeys(settings.api_keys)  # replaced as a whole, see Server.set_api_keys
        self.watcher = Watcher(settings)
        self.admission = Admission(settings)
        self.crew = Crew(settings.n_threads, settings.n_threads_reserved, settings.shed_after_s)
        self.watcher.call_at_ticks(self._relieve_crew)
        self.budget = BodyBudget(settings.body_budget_bytes)
        self.draining = False
        self._counts: dict[str, int] = {}
        self._answers: dict[tuple[str, int], int] = {}  # by route and status
        self._refusals: dict[str, int] = {}  # by the code of the error, "" for none
        self._lock = threading.Lock()

    def _relieve_crew(self, now: float) -> None:
        if self.crew.is_short:
            self.admission.shed_longest_holding()
            self.crew.tick(now)

    def check(self, head: Head) -> Pass | None:
        """Say where a head leads, or refuse it unread: HttpProblem. None = OPTIONS."""
        if head.method == "OPTIONS":
            self.origins.check(head)
            return None
        function, path_params = self.routes.find(head.method, head.path)
        self.origins.check(head)
        is_public = self.is_public(head)
        api_key = "" if is_public else self.keys.check(head.headers)
        if any(coding != "identity" for coding in head.headers.tokens("content-encoding")):
            raise HttpProblem(415, "compressed bodies are not read here; send the JSON as it is")
        return Pass(function, path_params, api_key)

    def is_public(self, head: Head) -> bool:
        return head.path in self.settings.public_paths

    def count(self, name: str) -> None:
        with self._lock:
            self._counts[name] = self._counts.get(name, 0) + 1

    def count_answer(self, path: str, status: int) -> None:
        key = (self.routes.template(path), status)
        with self._lock:
            self._answers[key] = self._answers.get(key, 0) + 1

    def count_refusal(self, reply: Reply) -> None:
        """Count an error by its code, or by its type: a bounded set, never a client's words."""
        error = reply.body.get("error")
        known = error if isinstance(error, dict) else {}
        code = str(known.get("code") or known.get("type") or "error")
        with self._lock:
            self._refusals[code] = self._refusals.get(code, 0) + 1

    def answers(self) -> dict[tuple[str, int], int]:
        with self._lock:
            return dict(self._answers)

    def refusals(self) -> dict[str, int]:
        with self._lock:
            return dict(self._refusals)

    def counts(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)
