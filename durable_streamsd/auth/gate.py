"""From a request's credentials to a caller: who is it, and are they still good.

Three kinds of tokens come in `Authorization: Bearer`, told apart by how they begin: those of the
file, reader tokens, and JWTs. A reader token may come in the query instead. One request has one.

A token that was good is remembered by the header that it came in, so that the next request with it
costs one look-up; a token that was not is looked at again each time. The memory is dropped when
tokens or keys change, and a caller in it counts for as long as it `holds`.

No part of this waits. Keys that have to be fetched are fetched in the background (`jwks`); a token
that names one that is not known yet is told to come again while they are.
"""

import re
from collections.abc import Callable
from typing import Final

from durable_streamsd.auth.caller import Caller, Source
from durable_streamsd.auth.jwt_check import JwtRules, TokenRefused, UnknownKey, check_jwt
from durable_streamsd.auth.jwt_keys import KeyRing
from durable_streamsd.auth.reader_tokens import (
    READER_TOKEN_PREFIX,
    read_reader_token,
    reader_key,
)
from durable_streamsd.auth.refusals import bad_token, malformed
from durable_streamsd.auth.scopes import Right, Scopes
from durable_streamsd.auth.token_file import TOKEN_PREFIX, TokenTable, digest_of
from durable_streamsd.core.problems import Code, Problem

__all__ = ["Gate"]

CREDENTIALS_BYTES_MAX: Final = 8_192
REMEMBERED_MAX: Final = 4_096
REMEMBERED_BYTES_MAX: Final = 2_048
"""Of a header that is remembered."""

_BEARER = re.compile(rb"bearer(?: +([A-Za-z0-9._~+/-]+=*))?", re.IGNORECASE)
_SCHEME = re.compile(rb"bearer(?![^ ])", re.IGNORECASE)
_READER: Final = READER_TOKEN_PREFIX.encode()
_OWN: Final = TOKEN_PREFIX.encode()
_NOT_KNOWN: Final = "This server does not know the token: it is wrong, or was revoked."


class Gate:
    """See the module. `anonymous` is what anybody may do, `reader_secret` what reader tokens are
    signed with, as soon as there is one; `fetch_keys` says whether keys are on their way."""

    def __init__(
        self,
        anonymous: Scopes,
        rules: JwtRules,
        now_ms: Callable[[], int],
        reader_secret: Callable[[], bytes | None],
    ) -> None:
        self.anonymous = Caller(anonymous, Source())
        self.tokens: TokenTable | None = None
        self.keys: KeyRing | None = None
        self.fetch_keys: Callable[[], bool] = lambda: False
        self.now_ms = now_ms
        self._rules = rules
        self._reader_secret = reader_secret
        self._reader_lent = Source()
        self._known: dict[bytes, Caller] = {}

    # ---- what the daemon says

    def put_tokens(self, tokens: TokenTable) -> bool:
        """From now on these count; whether anybody's right has ended with that."""
        revoked = False
        for token_id, caller in self.tokens.by_id.items() if self.tokens is not None else ():
            if tokens.by_id.get(token_id) is not caller:
                caller.source.live = False
                revoked = True
        self.tokens = tokens
        self._known.clear()
        return revoked

    def put_keys(self, keys: KeyRing) -> bool:
        """From now on these count; whether anybody's right has ended with that."""
        revoked = keys.succeeds(self.keys)
        self.keys = keys
        self._known.clear()
        return revoked

    # ---- what a request asks

    def caller(
        self, headers: dict[bytes, bytes], path: bytes | None = None, query_token: bytes = b""
    ) -> Caller:
        """Who sends a request; `path` is that of the stream which it reads, if it does.

        Raises `Problem`.
        """
        header = headers.get(b"authorization")
        if header is None:
            if not query_token:
                return self.anonymous
            if not query_token.startswith(_READER):
                raise bad_token("Only reader tokens may stand in a URL.")
            return self._reader(query_token, path)
        known = self._known.get(header)
        if known is not None and known.holds(self.now_ms) and not query_token:
            return known
        token = self._token_in(header)
        if token is None:
            return self.anonymous
        if query_token:
            raise malformed("Send one token: in the Authorization header or in the query.")
        if token.startswith(_READER):
            return self._reader(token, path)
        caller = self._own(token) if token.startswith(_OWN) else self._jwt(token)
        if not caller.holds(self.now_ms):
            raise bad_token("The token has expired.")
        if len(header) <= REMEMBERED_BYTES_MAX:
            if len(self._known) >= REMEMBERED_MAX:
                self._known.clear()
            self._known[header] = caller
        return caller

    def account(self, headers: dict[bytes, bytes]) -> str:
        """Whom limits count a request for; empty if its credentials name nobody, or are no good.

        Nobody is told by a reader token: what leaks with a URL must not use up what its maker has.
        """
        try:
            return self.caller(headers).account
        except Problem:
            return ""

    @staticmethod
    def _token_in(header: bytes) -> bytes | None:
        """The bearer token; None for credentials of another kind."""
        if len(header) > CREDENTIALS_BYTES_MAX:
            raise malformed(f"A token has {CREDENTIALS_BYTES_MAX} bytes at most.")
        match = _BEARER.fullmatch(header)
        if match is None:
            if _SCHEME.match(header):
                raise malformed("Send one header 'Authorization: Bearer TOKEN'.")
            return None
        if match[1] is None:
            raise malformed("There is no token behind 'Bearer'.")
        return match[1]

    def _own(self, token: bytes) -> Caller:
        caller = None if self.tokens is None else self.tokens.by_digest.get(digest_of(token))
        if caller is None:
            raise bad_token(_NOT_KNOWN)
        return caller

    def _reader(self, token: bytes, path: bytes | None) -> Caller:
        secret = self._reader_secret()
        said = None
        if secret is not None and path is not None:
            said = read_reader_token(reader_key(secret), token, path)
        if said is None or path is None:
            raise bad_token("The reader token was not made by this server for this stream.")
        source = self._reader_lent
        if said.token_id:
            lender = None if self.tokens is None else self.tokens.by_id.get(said.token_id)
            if lender is None or not (lender.holds(self.now_ms) and lender.may(Right.READ, path)):
                raise bad_token(_NOT_KNOWN)
            source = lender.source
        scopes = Scopes(readable=path).with_all(self.anonymous.scopes)
        caller = Caller(scopes, source, said.expires_s * 1_000, said.token_id)
        if not caller.holds(self.now_ms):
            raise bad_token("The token has expired.")
        return caller

    def _jwt(self, token: bytes) -> Caller:
        if token.count(b".") != 2:
            raise bad_token(_NOT_KNOWN)
        if self.keys is None:
            if self.fetch_keys():
                raise Problem(Code.KEYS_UNAVAILABLE)
            raise bad_token(_NOT_KNOWN)
        try:
            return check_jwt(token.decode("ascii"), self.keys, self._rules, self.anonymous.scopes)
        except UnknownKey as error:
            if self.fetch_keys():
                raise Problem(Code.KEYS_UNAVAILABLE) from None
            raise bad_token(str(error)) from None
        except TokenRefused as error:
            raise bad_token(str(error)) from None
