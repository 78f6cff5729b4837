"""Every refusal the product can utter: one class, one code, one HTTP status.

The class's docstring is the default sentence for people; `code` is the closed enum that programs read; `details`
are facts about this occurrence. Foreign exceptions (sqlite3, OSError, msgspec) are turned into one of these at the
edge where they arise, so nothing above an adapter ever catches a driver's exception.
"""

from __future__ import annotations

from typing import Any, ClassVar


class EnterpriseError(Exception):
    """Something went wrong inside the gateway."""

    code: ClassVar[str] = "INTERNAL"
    status: ClassVar[int] = 500

    def __init__(self, message: str | None = None, /, **details: Any) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip().splitlines()[0])
        self.details = details

    @property
    def message(self) -> str:
        return str(self.args[0])


# -- the request itself ------------------------------------------------------------------------------------------
class BadRequest(EnterpriseError):
    """The request could not be understood."""

    code, status = "BAD_REQUEST", 400


class InvalidJson(BadRequest):
    """The body is not valid JSON."""

    code = "INVALID_JSON"


class ValidationFailed(EnterpriseError):
    """Some fields are not valid."""

    code, status = "VALIDATION_ERROR", 422

    def __init__(self, fields: list[FieldError], message: str | None = None) -> None:
        super().__init__(message, fields=[{"path": f[0], "code": f[1], "message": f[2]} for f in fields])


FieldError = tuple[str, str, str]
"""(JSON Pointer, machine code, sentence)."""


class Unauthenticated(EnterpriseError):
    """A valid API key is required."""

    code, status = "UNAUTHENTICATED", 401


class SignInFailed(Unauthenticated):
    """E-mail, password or code are not right."""

    code = "SIGN_IN_FAILED"


class SecondFactorRequired(Unauthenticated):
    """The code of the second factor is needed too."""

    code = "SECOND_FACTOR_REQUIRED"


class LinkInvalid(EnterpriseError):
    """This link is not valid: used, expired, or replaced by a newer one."""

    code, status = "LINK_INVALID", 410


class Forbidden(EnterpriseError):
    """This credential may not do that."""

    code, status = "FORBIDDEN", 403


class CrossSite(Forbidden):
    """A change was asked for by another site's page."""

    code = "CROSS_SITE"


class SecondFactorMissing(Forbidden):
    """This organisation asks for a second factor: set yours up first."""

    code = "SECOND_FACTOR_MISSING"


class HostRefused(Forbidden):
    """This Host or Origin is not served here."""

    code = "HOST_REFUSED"


class UndocumentedRoute(Forbidden):
    """No documented route has this method and path, so no tool answers for it."""

    code = "ROUTE_UNDOCUMENTED"


class NotFound(EnterpriseError):
    """There is no such thing here."""

    code, status = "NOT_FOUND", 404


class MethodNotAllowed(EnterpriseError):
    """This path does not take that method."""

    code, status = "METHOD_NOT_ALLOWED", 405


class PreconditionFailed(EnterpriseError):
    """It was changed since you read it; read it again."""

    code, status = "PRECONDITION_FAILED", 412


class PreconditionRequired(EnterpriseError):
    """Say with If-Match which version this changes: the ETag that was read, or * for whichever it is."""

    code, status = "PRECONDITION_REQUIRED", 428


class KeyReused(EnterpriseError):
    """This Idempotency-Key was sent with another request before."""

    code, status = "IDEMPOTENCY_KEY_REUSED", 422


class InFlight(EnterpriseError):
    """A request with this Idempotency-Key has begun, and its end is not known yet."""

    code, status = "IDEMPOTENCY_IN_FLIGHT", 409


class UseCursor(BadRequest):
    """So far into a list only a cursor leads."""

    code = "USE_CURSOR"


class BodyTooLarge(EnterpriseError):
    """The body is larger than this gateway accepts."""

    code, status = "BODY_TOO_LARGE", 413


class UnsupportedMedia(EnterpriseError):
    """This content type or encoding is not accepted."""

    code, status = "UNSUPPORTED_MEDIA_TYPE", 415


class TooManyRequests(EnterpriseError):
    """Too many requests."""

    code, status = "RATE_LIMITED", 429


# -- storage -----------------------------------------------------------------------------------------------------
class StoreError(EnterpriseError):
    """The store could not do that."""

    code, status = "STORE_ERROR", 503


class StoreUnavailable(StoreError):
    """The store cannot be reached."""

    code = "STORE_UNAVAILABLE"


class Stale(StoreError):
    """The record was changed by someone else; read it again."""

    code, status = "STALE", 409


class Conflict(StoreError):
    """A record with this value exists already."""

    code, status = "CONFLICT", 409

    def __init__(self, index: str, message: str | None = None) -> None:
        super().__init__(message or f"A record with this value exists already ({index}).", index=index)
        self.index = index


class LastOwner(EnterpriseError):
    """An organisation keeps at least one active owner."""

    code, status = "LAST_OWNER", 409


class LimitReached(StoreError):
    """The counter is at its ceiling."""

    code, status = "LIMIT_REACHED", 409


class UndeclaredQuery(StoreError):
    """No declared index serves this query."""

    code, status = "UNDECLARED_QUERY", 500


class RecordTooLarge(StoreError):
    """The record is larger than this store accepts."""

    code, status = "RECORD_TOO_LARGE", 413


class CursorInvalid(BadRequest):
    """The cursor does not belong to this query."""

    code = "CURSOR_INVALID"


# -- configuration -----------------------------------------------------------------------------------------------
class SettingsError(EnterpriseError):
    """The settings are not valid."""

    code, status = "SETTINGS_ERROR", 500


class PluginError(EnterpriseError):
    """A plugin could not be set up."""

    code, status = "PLUGIN_ERROR", 500


class SecretError(EnterpriseError):
    """A stored secret could not be decrypted with the present key."""

    code, status = "SECRET_ERROR", 500


# -- upstreams ---------------------------------------------------------------------------------------------------
class UpstreamError(EnterpriseError):
    """The upstream did not answer as it should."""

    code, status = "UPSTREAM_ERROR", 502
    #: True when not one byte of the request can have been processed, so that a caller may safely send it again.
    unsent: ClassVar[bool] = False


class UpstreamRefused(UpstreamError):
    """No connection to the upstream could be made."""

    code = "UPSTREAM_UNREACHABLE"
    unsent = True


class AddressRefused(UpstreamRefused):
    """This address is never contacted."""

    code = "ADDRESS_REFUSED"


class BreakerOpen(UpstreamRefused):
    """The upstream failed too often and is given a rest."""

    code, status = "UPSTREAM_RESTING", 503


class UpstreamBusy(UpstreamRefused):
    """The upstream has no free connection within the deadline."""

    code, status = "UPSTREAM_BUSY", 503


class UpstreamTimeout(UpstreamError):
    """The upstream did not answer in time."""

    code, status = "UPSTREAM_TIMEOUT", 504


class UpstreamBroken(UpstreamError):
    """The upstream closed the connection in mid-answer; whether it acted is unknown."""

    code = "UPSTREAM_BROKEN"


class UpstreamProtocol(UpstreamError):
    """The upstream's answer is not valid HTTP or MCP."""

    code = "UPSTREAM_PROTOCOL"


# -- the journal -------------------------------------------------------------------------------------------------
class JournalFull(EnterpriseError):
    """The journal has no room, so nothing may be called."""

    code, status = "JOURNAL_FULL", 503


class JournalBroken(JournalFull):
    """The journal cannot be written, so nothing may be called."""

    code = "JOURNAL_BROKEN"
