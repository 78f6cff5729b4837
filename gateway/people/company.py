"""What an organisation has set for itself. Secrets are sealed, and never shown again."""

from __future__ import annotations

import zoneinfo
from typing import Annotated, Final

import msgspec

from ...catalog.errors import Conflict, FieldError, NotFound, Stale, ValidationFailed
from ...catalog.records import COMPANIES, ORGS, Company, Org
from ...catalog.store import GLOBAL, Insert, Replace, Store, Write
from ..accounts import NAME, canonical_email
from ..changes import Clock
from ..upstream_spec import KEPT
from ..vault import Vault

ID: Final = "company"
SECRETS: Final = ("mail_password",)
"""What can be set and is never shown."""

Domain = Annotated[str, msgspec.Meta(max_length=253, pattern=r"^([a-z0-9-]{1,63}(\.[a-z0-9-]{1,63})+)?$(?!\n)")]
Host = Annotated[str, msgspec.Meta(max_length=253, pattern=r"^[A-Za-z0-9.:-]*$(?!\n)")]
Short = Annotated[str, msgspec.Meta(max_length=254, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$(?!\n)")]


class CompanySpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The settings of an organisation. `session_hours`: nobody stays signed in longer, 0: as long as the server lets
    them. `secrets`: `mail_password`; left out they stay; given, they are all there are, and `set` keeps one."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=NAME)]
    domain: Domain = ""
    contact: Annotated[str, msgspec.Meta(max_length=254)] = ""
    timezone: Annotated[str, msgspec.Meta(max_length=64)] = "UTC"
    require_second_factor: bool = False
    session_hours: Annotated[int, msgspec.Meta(ge=0, le=8760)] = 0
    mail_host: Host = ""
    mail_port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 587
    mail_user: Short = ""
    mail_from: Annotated[str, msgspec.Meta(max_length=254)] = ""
    secrets: dict[str, Annotated[str, msgspec.Meta(max_length=1024)] | None] | msgspec.UnsetType = msgspec.UNSET


class Companies:
    """One per worker."""

    def __init__(self, store: Store, vault: Vault, clock: Clock) -> None:
        self._store = store
        self._vault = vault
        self._clock = clock

    async def read(self, org: str) -> tuple[Org, Company]:
        """The organisation and what it has set; defaults where it has set nothing (version 0). NotFound."""
        record: Org | None = await self._store.get(ORGS, GLOBAL, org)
        if record is None:
            raise NotFound("There is no such organisation.")
        return record, await self.company(org)

    async def company(self, org: str) -> Company:
        """What an organisation has set."""
        found: Company | None = await self._store.get(COMPANIES, org, ID)
        return found or Company(org=org, id=ID)

    async def write(self, org: str, spec: CompanySpec, version: str | None = None) -> tuple[Org, Company]:
        """Say all of it anew, secrets left out stay. ValidationFailed with all faults; Stale for another `version`."""
        _check(spec)
        now = int(self._clock() * 1000)
        record, company = await self.read(org)
        if version is not None and version != version_of(record, company):
            raise Stale
        for name in msgspec.structs.fields(CompanySpec):
            if name.name not in {"name", "secrets"}:
                setattr(company, name.name, getattr(spec, name.name))
        company.secrets = self._sealed(company, spec)
        company.updated_at = now
        writes: list[Write] = []
        if record.name != spec.name:
            record.name, record.updated_at = spec.name, now
            writes.append(Replace(ORGS, record))
        if company.version:
            writes.append(Replace(COMPANIES, company))
        else:
            company.created_at = now
            writes.append(Insert(COMPANIES, company))
        try:
            await self._store.commit(*writes)
        except Conflict:
            raise Stale from None
        return await self.read(org)

    def _sealed(self, company: Company, spec: CompanySpec) -> dict[str, str]:
        if isinstance(spec.secrets, msgspec.UnsetType):
            return company.secrets
        kept: dict[str, str] = {}
        for name, value in spec.secrets.items():
            if value == KEPT and name in company.secrets:
                kept[name] = company.secrets[name]
            elif value is not None:
                kept[name] = self._vault.seal(value, (company.org, "company", f"secrets.{name}", ID))
        return kept

    def secret(self, company: Company, name: str) -> str:
        """A secret in clear, for whoever sends mail; "" when it is not set. SecretError."""
        sealed = company.secrets.get(name, "")
        return self._vault.open(sealed, (company.org, "company", f"secrets.{name}", ID)) if sealed else ""


def version_of(org: Org, company: Company) -> str:
    """Changes with the name and with everything else."""
    return f"{org.version}.{company.version}"


def _check(spec: CompanySpec) -> None:
    faults: list[FieldError] = []
    try:
        zoneinfo.ZoneInfo(spec.timezone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        faults.append(("/timezone", "unknown_zone", f"{spec.timezone!r} is no time zone, such as Europe/Berlin."))
    for field in ("contact", "mail_from"):
        address: str = getattr(spec, field)
        try:
            if address:
                canonical_email(address)
        except ValidationFailed:
            faults.append((f"/{field}", "invalid", f"{address!r} is no e-mail address."))
    if not isinstance(spec.secrets, msgspec.UnsetType):
        faults += [
            (f"/secrets/{name}", "unknown_secret", f"There is no such secret; known are: {', '.join(SECRETS)}.")
            for name in spec.secrets
            if name not in SECRETS
        ]
    if faults:
        raise ValidationFailed(faults)
