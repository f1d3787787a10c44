"""What all connections of one server share."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Callable

from libloader.web.admission import Admission, BodyBudget
from libloader.web.auth import ApiKeys
from libloader.web.origins import Origins
from libloader.web.problems import Reply
from libloader.web.routes import Routes
from libloader.web.settings import WebSettings
from libloader.web.watch import Watcher

if TYPE_CHECKING:  # ssl may be missing; an exchange holds this; its functions are only named here
    import ssl

    from libloader.web.exchange import Exchange

RouteFunction = Callable[["Exchange"], None]
RouteTable = Mapping[tuple[str, str], RouteFunction]
DescribeError = Callable[[BaseException], Reply]


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
        self.budget = BodyBudget(settings.body_budget_bytes)
        self.draining = False
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()

    def count(self, name: str) -> None:
        with self._lock:
            self._counts[name] = self._counts.get(name, 0) + 1

    def counts(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)
