"""Which handler answers which path, after the checks that all share."""

from __future__ import annotations

import functools
import importlib.metadata
import re
import urllib.parse
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import trio

from actors.frontend import (
    admin_routes,
    anthropic,
    chat,
    completions,
    embeddings,
    native,
    openapi,
    responses,
    tokens,
)
from actors.frontend.access import Access, Scope
from actors.frontend.accounts import Account
from actors.frontend.delivery import collect
from actors.frontend.finder import Finder
from actors.frontend.health import Health
from actors.frontend.jobs import Job
from actors.frontend.operations import OPERATIONS, SCOPES
from actors.frontend.page import Page
from actors.frontend.service import Service
from actors.frontend.socket_mode import SocketMode
from actors.frontend.text import Collector
from actors.frontend.watching import Watching
from protocols.errors import UserError
from protocols.openai.server import Alive, ModelEntry, ModelList, Version
from protocols.request import OutputOptions, TokenPrompt
from protocols.sampling import SamplingParams
from runtime.exchange import Exchange

Route = Callable[..., Awaitable[None]]
Methods = dict[str, Route]
GENERATE_SECONDS = 15.0
_FIELD = "{id}"
_ID, _LONG_ID = "(?P<id>[^/]{1,200})", "(?P<id>.{1,200})"
"""What stands for `{id}`; in the names of models there may be slashes."""
_ANTHROPIC = re.compile(r"/v1/messages(/.*)?")
"""Paths whose refusals have Anthropic's shape."""


class Table:
    """The routes, by path template and method."""

    def __init__(self, methods: dict[str, Methods]) -> None:
        self._plain = {path: found for path, found in methods.items() if _FIELD not in path}
        self._patterns = [(_pattern(path), found) for path, found in methods.items() if _FIELD in path]

    def find(self, path: str) -> tuple[Methods, dict[str, str]]:
        """The handlers at `path` by method, and the values of its fields. Raises UserError 404."""
        if path in self._plain:
            return self._plain[path], {}
        for pattern, methods in self._patterns:
            if match := pattern.fullmatch(path):
                return methods, {name: urllib.parse.unquote(text) for name, text in match.groupdict().items()}
        raise UserError(f"There is no {path[:200]}.", status=404, code="not_found")


class Routes:
    """The handler of the HTTP server."""

    def __init__(
        self, service: Service, finder: Finder, access: Access, sockets: SocketMode, health: Health
    ) -> None:
        self._service = service
        self._finder = finder
        self._access = access
        self._health = health
        self._sockets = sockets
        self._page = Page("page.html")
        self._watching = Watching(service.config)
        self._tables: dict[Account | None, Table] = {}

    def _table(self, account: Account | None) -> Table:
        """The routes for the requests of one key."""
        if account not in self._tables:
            self._tables = {
                known: table for known, table in self._tables.items() if known is None or known.valid
            }
            service = self._service.charged_to(account) if account is not None else self._service
            self._tables[account] = self._routes(service)
        return self._tables[account]

    def _routes(self, service: Service) -> Table:
        """What `operations` says is served, each with what answers it."""
        handlers = self._handlers(service)
        methods: dict[str, Methods] = {}
        for each in OPERATIONS:
            methods.setdefault(each.path, {})[each.method] = handlers[each.path][each.method]
        return Table(methods)

    def _handlers(self, service: Service) -> dict[str, Methods]:
        bound, finder = functools.partial, self._finder
        return {
            "/": {"GET": self._page.show},
            "/_company": {"GET": self._watching.page},
            "/_company/live": {"GET": self._watching.live},
            "/metrics": {"GET": self._watching.metrics},
            admin_routes.KEYS: {"GET": self._show_keys},
            "/health": {"GET": self._show_health},
            "/ping": {"GET": self._show_health},
            "/health_generate": {"GET": self._generate_health},
            "/version": {"GET": self._version},
            "/openapi.json": {"GET": self._openapi},
            "/v1/models": {"GET": self._models},
            "/v1/models/{id}": {"GET": self._model},
            "/v1/chat/completions": {"POST": bound(chat.create, service)},
            "/v1/completions": {"POST": bound(completions.create, service)},
            "/tokenize": {"POST": bound(tokens.tokenize, service)},
            "/detokenize": {"POST": bound(tokens.detokenize, service)},
            "/v1/embeddings": {"POST": bound(embeddings.create, service)},
            "/generate": {"POST": bound(native.create, service)},
            "/v1/messages": {"POST": bound(anthropic.create, service)},
            "/v1/messages/count_tokens": {"POST": bound(anthropic.count_tokens, service)},
            "/v1/responses": {
                "POST": bound(responses.create, service, finder),
                "GET": bound(self._upgrade, service),
            },
            "/v1/responses/{id}": {
                "GET": bound(responses.retrieve, service, finder),
                "DELETE": bound(responses.delete, service, finder),
            },
            "/v1/responses/{id}/input_items": {"GET": bound(responses.input_items, service, finder)},
            "/v1/responses/{id}/cancel": {"POST": bound(responses.cancel, service, finder)},
            **admin_routes.table(service.config),
        }

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one request; raises UserError for what is refused."""
        head, access = exchange.head, self._access
        exchange.extra = functools.partial(access.cors, head)
        if _ANTHROPIC.fullmatch(head.path):
            exchange.document = functools.partial(anthropic.error_document, request_id=exchange.id)
        scope = SCOPES.get(head.path, Scope.CLIENT)
        if head.method == "OPTIONS" and access.asks_first(head):
            access.check_place(head, scope)
            await self._answer_preflight(exchange)
            return
        try:
            account = access.admit(head, scope)
        except UserError as error:
            if error.body.code == "key_not_allowed":
                self._table(None).find(head.path)
            raise
        if account is not None:
            exchange.extra = lambda: (*access.cors(head), *account.headers())
        methods, fields = self._table(account).find(head.path)
        await self._call(exchange, methods, fields)

    async def _answer_preflight(self, exchange: Exchange) -> None:
        """Answer a preflight, which carries no key."""
        methods, _ = self._table(None).find(exchange.head.path)
        await exchange.respond(204, b"", headers=self._access.preflight(exchange.head, ", ".join(methods)))

    async def _call(self, exchange: Exchange, methods: Methods, fields: dict[str, str]) -> None:
        method = exchange.head.method
        allowed = (*methods, *(("HEAD",) if "GET" in methods else ()), "OPTIONS")
        allow = (("allow", ", ".join(allowed)),)
        route = methods.get("GET" if method == "HEAD" else method)
        if method == "OPTIONS":
            await exchange.respond(204, b"", headers=allow)
        elif route is None:
            error = UserError(f"{method[:20]} is not allowed here.", status=405, code="method_not_allowed")
            await exchange.refuse(error.body, headers=allow)
        else:
            await route(exchange, **fields)

    async def _upgrade(self, service: Service, exchange: Exchange) -> None:
        if not exchange.head.upgrades:
            raise UserError(
                "GET /v1/responses is a WebSocket; POST creates a response.",
                status=426,
                code="upgrade_required",
            )
        await self._sockets.serve(service, exchange)

    async def _show_keys(self, exchange: Exchange) -> None:
        await _json(exchange, {"object": "list", "data": self._access.usage()})

    async def _show_health(self, exchange: Exchange) -> None:
        problems = self._health.problems()
        if problems:
            names = ", ".join(f"{name} ({what})" for name, what in problems.items())
            raise UserError(
                f"Not everything is up: {names}.",
                status=503,
                type="server_error",
                code="unhealthy",
                retry_after=1,
            )
        await _json(exchange, Alive())

    async def _generate_health(self, exchange: Exchange) -> None:
        """Answer `GET /health_generate`: generate one token."""
        sampling = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
        job = Job((TokenPrompt(bytes(4)),), sampling, OutputOptions())
        with trio.move_on_after(GENERATE_SECONDS):
            await collect(self._service.engine, job, Collector(1, 1))
            await _json(exchange, Alive())
            return
        raise UserError(
            f"No token came within {GENERATE_SECONDS:g} s.", status=503, type="server_error", code="unhealthy"
        )

    async def _version(self, exchange: Exchange) -> None:
        await _json(exchange, Version(version()))

    async def _openapi(self, exchange: Exchange) -> None:
        needs_key = self._access.needs_key
        document = openapi.document(self._service.model, version(), needs_key=needs_key)
        await exchange.respond(200, document)

    async def _models(self, exchange: Exchange) -> None:
        names = (self._service.model.name, *self._service.adapters.names())
        await _json(exchange, ModelList(data=[self._card(name) for name in names]))

    async def _model(self, exchange: Exchange, id: str) -> None:
        adapter = self._service.adapters.find(id)
        await _json(exchange, self._card(adapter.name if adapter is not None else id))

    def _card(self, name: str) -> ModelEntry:
        model, started = self._service.model, self._service.started
        parent = model.name if name != model.name else None
        return ModelEntry(id=name, created=started, max_model_len=model.context, root=name, parent=parent)


def _pattern(path: str) -> re.Pattern[str]:
    """The paths that a template means."""
    identifier = _LONG_ID if path.startswith("/v1/models/") else _ID
    return re.compile(re.escape(path).replace(re.escape(_FIELD), identifier))


def version() -> str:
    """The installed version, "unknown" when run from a source tree."""
    try:
        return importlib.metadata.version("troupe")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


async def _json(exchange: Exchange, document: dict[str, Any] | msgspec.Struct) -> None:
    await exchange.respond(200, msgspec.json.encode(document))
