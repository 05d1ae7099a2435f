"""Access control: API keys, the origins of web pages, and the host names that requests may use.

Keys live in the vault; a new keyring is noticed at the next request. They are looked up by a hash that is
keyed with a secret of this process, so how long that takes says nothing about any key.

A browser sends along where a page comes from (`origin`). A page of another origin may use the company only
if that is on the list of `--cors-origin`; this also keeps strange pages from opening a WebSocket, to which
CORS does not apply. Where no key protects the company, and on administrative routes, the company must also
have been called by an address or a name it knows: a page whose name was re-bound to this address has a name
of its own.
"""

from __future__ import annotations

import enum
import hashlib
import ipaddress
import secrets
import urllib.parse

from actors.frontend.accounts import Account
from protocols.config import Config
from protocols.errors import UserError
from protocols.keys import Key
from runtime.http_wire import Head
from runtime.vault import Vault

PREFLIGHT_SECONDS = 600
KEY_PROTOCOL = "openai-insecure-api-key."
"""How the subprotocol begins in which a web page's WebSocket brings its key."""
NO_LONGER = UserError(
    "The API key of this connection is no longer valid.", status=401, code="invalid_api_key"
)
_EXPOSED = "x-request-id, retry-after, x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens"


class Scope(enum.Enum):
    """Which keys may use a route."""

    OPEN = "everybody"
    CLIENT = "whoever has a key, where keys are needed"
    ADMIN = "whoever has an administrator's key"
    WATCH = "whoever has an administrator's key, where keys are needed"


class Access:
    """Access control of one frontend."""

    def __init__(self, config: Config, vault: Vault, frontend: int) -> None:
        vault.vacate(frontend)
        self._vault = vault
        self._frontend = frontend
        self._origins = frozenset(config.origins)
        self._hosts = frozenset((config.host.lower(), "localhost", *(host.lower() for host in config.hosts)))
        self._secret = secrets.token_bytes(32)
        self._accounts: dict[str, Account] = {}
        self._by_hash: dict[bytes, Account] = {}
        self._generation = -1
        self._needed = False

    def admit(self, head: Head, scope: Scope) -> Account | None:
        """The account whose request this is; None where no key is needed. Raises UserError 401 or 403."""
        self.check_place(head, scope)
        if scope is Scope.OPEN or (scope is not Scope.ADMIN and not self._needed):
            return None
        account = self._account(head)
        if account is None:
            kind = "administrator's" if scope is Scope.ADMIN else "API"
            raise UserError(
                f"A valid {kind} key is needed: authorization: Bearer KEY.",
                status=401,
                code="invalid_api_key",
            )
        if account.key.admin is (scope is Scope.CLIENT):
            raise UserError(f"This is for {scope.value}.", status=403, code="key_not_allowed")
        return account

    def check_place(self, head: Head, scope: Scope) -> None:
        """Refuse origins and host names that are not allowed. Raises UserError 403."""
        self._look()
        origins = head.values("origin")
        if origins and not self._welcome(origins, head.value("host"), scope):
            raise UserError(
                "This web page's origin is not allowed here.", status=403, code="origin_not_allowed"
            )
        exposed = scope in (Scope.ADMIN, Scope.WATCH) or (bool(origins) and not self._needed)
        if exposed and not self._is_ours(head.value("host")):
            raise UserError("This host name is not allowed here.", status=403, code="host_not_allowed")

    @property
    def needs_key(self) -> bool:
        """Whether clients must bring a key."""
        self._look()
        return self._needed

    def cors(self, head: Head) -> tuple[tuple[str, str], ...]:
        """The CORS headers of an answer, for a page on the list."""
        origin = head.value("origin")
        if not self._origins:
            return ()
        if origin not in self._origins:
            return (("vary", "origin"),)
        return (
            ("access-control-allow-origin", origin),
            ("access-control-expose-headers", _EXPOSED),
            ("vary", "origin"),
        )

    def asks_first(self, head: Head) -> bool:
        """Whether this is a browser's CORS preflight for a page on the list."""
        return head.value("origin") in self._origins and bool(head.value("access-control-request-method"))

    def preflight(self, head: Head, allowed: str) -> tuple[tuple[str, str], ...]:
        """The headers that answer a preflight. allowed: the route's methods."""
        return (
            ("access-control-allow-methods", allowed),
            ("access-control-allow-headers", _plain(head.value("access-control-request-headers"))),
            ("access-control-max-age", str(PREFLIGHT_SECONDS)),
        )

    def _welcome(self, origins: list[str], host: str, scope: Scope) -> bool:
        """Whether a page's origin may use a route of this scope: it is on the list, or the company's own.
        Only the company's own may watch it, and none may administer it."""
        if len(origins) != 1 or scope is Scope.ADMIN:
            return False
        if scope is not Scope.WATCH and origins[0] in self._origins:
            return True
        return bool(host) and urllib.parse.urlsplit(origins[0]).netloc.lower() == host.lower()

    def _is_ours(self, host: str) -> bool:
        name = _name(host)
        if name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _account(self, head: Head) -> Account | None:
        token = _token(head)
        return self._by_hash.get(self._hash(hashlib.sha256(token).hexdigest())) if token else None

    def _hash(self, digest: str) -> bytes:
        return hashlib.blake2b(digest.encode(), key=self._secret, digest_size=32).digest()

    def _look(self) -> None:
        """Take over a new keyring. Accounts continue under their names; those of keys that are gone end."""
        if self._vault.generation == self._generation:
            return
        self._generation, keyring, slots = self._vault.read()
        self._needed = keyring.needed
        before, self._accounts = self._accounts, {}
        for key in keyring.keys:
            self._accounts[key.name] = self._kept(before.pop(key.name, None), key, slots[key.name])
        for account in before.values():
            account.valid = False
        self._by_hash = {self._hash(account.key.digest): account for account in self._accounts.values()}

    def _kept(self, account: Account | None, key: Key, slot: int) -> Account:
        if account is None:
            return Account(key, self._vault, self._frontend, slot)
        account.key = key
        return account

    def holds(self, account: Account | None) -> bool:
        """Whether the key that a socket was opened with is still there."""
        self._look()
        return account is None or account.valid

    def account(self, name: str) -> Account | None:
        """The account of the key that is called so, None where there is none now."""
        self._look()
        return self._accounts.get(name)

    def look_around(self) -> None:
        """Refresh the accounts' views of what other frontends have spent."""
        for account in self._accounts.values():
            account.look()

    def usage(self) -> list[dict[str, object]]:
        """Every key by name: what it is for, may do, and has used."""
        self._look()
        return [
            {
                "name": account.key.name,
                "admin": account.key.admin,
                "limits": account.key.limits,
                "used": account.used(),
            }
            for account in self._accounts.values()
        ]


def _token(head: Head) -> bytes:
    """The key that a request brings; b"" for none. A web page's WebSocket can send no `authorization`: it
    offers the key, percent-encoded, among its subprotocols. Anthropic's clients have their own header."""
    scheme, _, token = head.value("authorization").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip().encode("latin-1")
    if head.value("x-api-key"):
        return head.value("x-api-key").encode("latin-1")
    offered = ",".join(head.values("sec-websocket-protocol")).split(",")
    keys = [each.strip() for each in offered if each.strip().startswith(KEY_PROTOCOL)]
    return urllib.parse.unquote_to_bytes(keys[0].removeprefix(KEY_PROTOCOL)) if keys else b""


def _name(host: str) -> str:
    """The host of a `host` header, in lower case and without its port."""
    try:
        return urllib.parse.urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _plain(names: str) -> str:
    """Header names that a browser asked for, as far as they are names."""
    asked = [name.strip().lower() for name in names.split(",")]
    return ", ".join(name for name in asked if name and all(c.isalnum() or c in "-_" for c in name))
