"""Who there is: organisations, people, agents, their permission profiles and their keys. All writes to them go here.

Every method takes the organisation it works in and touches nothing outside it. Writes that can change a verdict raise
the policy epoch in the same batch (`Changes`). The API and the CLI both stand on this.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import msgspec

from ..catalog.calls import Principal
from ..catalog.errors import Conflict, NotFound, Stale, ValidationFailed
from ..catalog.ids import new_id
from ..catalog.presets import get_preset
from ..catalog.profiles import Profile
from ..catalog.records import (
    AGENTS,
    KEYS,
    ORGS,
    PROFILES,
    USERS,
    Agent,
    AgentStatus,
    ApiKey,
    Org,
    ProfileRecord,
    Role,
    User,
)
from ..catalog.store import GLOBAL, MAX_PAGE, Delete, Insert, Query, Replace, Store, Write
from ..policies.validation import validate_profile
from .changes import ATTEMPTS, ROOM, Changes, Clock
from .keys import MIN_FOREIGN, KeySpec, checked, foreign_digest, narrowed, new_secret, to_record
from .scopes import CALL

if TYPE_CHECKING:
    from .passwords import Passwords

PRINTABLE: Final = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$(?!\n)"
"""One line of text: no control characters and no line separators. (`$` alone lets a final line feed pass.)"""

NAME: Final = r"^[^\s\x00-\x1f\x7f-\x9f]([^\x00-\x1f\x7f-\x9f\u2028\u2029]*[^\s\x00-\x1f\x7f-\x9f])?$(?!\n)"
"""As above, with no space at either end: two names must not look alike."""

_NAMED: Final = "A name has no control characters, and no space at either end."
_ONE_LINE: Final = "This is one line of text, without control characters."

AgentName = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=NAME, description=_NAMED)]
Line = Annotated[str, msgspec.Meta(max_length=500, pattern=PRINTABLE, description=_ONE_LINE)]
MetadataKey = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=NAME, description=_NAMED)]
Metadata = Annotated[dict[MetadataKey, Line], msgspec.Meta(max_length=50)]

_EMAIL: Final = re.compile(r"[^@\s\x00-\x1f\x7f]{1,64}@[^@\s\x00-\x1f\x7f]{1,189}")
PRESET_PROFILE: Final = "prf_preset-"
"""Agents with one preset share one record per organisation, whose id is this and the preset's."""

T = TypeVar("T")


class AgentSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a person says about an agent."""

    name: AgentName
    description: Line = ""
    status: AgentStatus = "active"
    metadata: Metadata = {}


class AgentChange(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """As `AgentSpec`, for an agent that exists: a status left out stays, so no omission wakes a suspended agent."""

    name: AgentName
    description: Line = ""
    status: AgentStatus | msgspec.UnsetType = msgspec.UNSET
    metadata: Metadata = {}


class Assignment(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Which profile an agent gets: exactly one of a preset's id, a shared profile's id, or a profile of its own."""

    preset: str | msgspec.UnsetType = msgspec.UNSET
    profile_id: str | msgspec.UnsetType = msgspec.UNSET
    profile: Profile | msgspec.UnsetType = msgspec.UNSET


class Accounts:
    """One per worker. `clock` gives seconds since the epoch; `on_change` runs after each write of policy."""

    def __init__(
        self, store: Store, clock: Clock = time.time, on_change: Callable[[], None] = lambda: None,
        passwords: Passwords | None = None,
    ) -> None:  # fmt: skip
        self._store = store
        self._changes = Changes(store, clock, on_change)
        self._passwords = passwords

    # -- organisations and people --------------------------------------------------------------------------------
    async def create_org(self, name: str, plan: str = "self-hosted") -> Org:
        """A new organisation. Its id is the `org` of everything it will own."""
        if not re.fullmatch(NAME, name) or len(name) > 128:
            raise ValidationFailed([("/name", "invalid", "A name has 1 to 128 printable characters.")])
        now = self._changes.now()
        org = Org(org=GLOBAL, id=new_id("org"), name=name, plan=plan, created_at=now, updated_at=now)
        return _first(await self._changes.commit(Insert(ORGS, org)), Org)

    async def create_user(
        self, org: str, email: str, password: str | None, *, name: str = "", role: Role = "owner", created_by: str = ""
    ) -> User:
        """A person who may sign in; without a password only once they have set one by a one-time link.

        Conflict("email") when the address is taken, in whichever organisation.
        """
        address = canonical_email(email)
        hashed = ""
        if password is not None:
            if self._passwords is None:
                from .passwords import Passwords  # argon2 is not loaded by a worker that nobody signs in at

                self._passwords = Passwords()
            hashed = await self._passwords.hash(password)
        now = self._changes.now()
        user = User(
            org=org, id=new_id("user"), email=address, name=name, role=role, password_hash=hashed,
            password_at=now if hashed else 0, created_by=created_by, created_at=now, updated_at=now,
        )  # fmt: skip
        return _first(await self._changes.commit(Insert(USERS, user)), User)

    # -- agents --------------------------------------------------------------------------------------------------
    async def agent(self, org: str, agent_id: str) -> Agent:
        """One agent. NotFound when this organisation has none of that id."""
        found: Agent | None = await self._store.get(AGENTS, org, agent_id)
        if found is None:
            raise NotFound(f"There is no agent {agent_id!r}.")
        return found

    async def create_agent(self, org: str, spec: AgentSpec, assignment: Assignment | None = None) -> Agent:
        """A new agent; without an assignment it may do nothing. Conflict("name") when the name is taken."""
        _revalidate(spec)
        now = self._changes.now()
        agent = Agent(
            org=org, id=new_id("agent"), name=spec.name, description=spec.description, status=spec.status,
            metadata=spec.metadata, created_at=now, updated_at=now,
        )  # fmt: skip

        async def attempt() -> Agent:
            writes: list[Write] = []
            if assignment is not None:
                agent.profile_id = (await self._target(agent, assignment, None, writes)).id
            return _first(await self._changes.commit(Insert(AGENTS, agent), *writes), Agent)

        return await _retried(attempt)

    async def replace_agent(
        self, org: str, agent_id: str, spec: AgentSpec | AgentChange, version: int | None = None
    ) -> Agent:
        """Say everything about an agent anew; its profile stays, and its status if left out.

        NotFound; Conflict("name"); Stale when `version` is no longer the stored one."""
        _revalidate(spec)
        agent = _same_version(await self.agent(org, agent_id), version)
        agent.name, agent.description = spec.name, spec.description
        agent.metadata = spec.metadata
        if not isinstance(spec.status, msgspec.UnsetType):
            agent.status = spec.status
        agent.updated_at = self._changes.now()
        return _first(await self._changes.commit(Replace(AGENTS, agent)), Agent)

    async def delete_agent(self, org: str, agent_id: str, version: int | None = None) -> None:
        """Remove an agent with its own profile, and revoke its keys in the same batch.

        Keys beyond one batch are revoked before: a crash in between leaves fewer live keys, never more.
        """

        async def attempt() -> None:
            await self._delete_agent(org, agent_id, version)

        await _retried(attempt, stale=version is None)

    async def _delete_agent(self, org: str, agent_id: str, version: int | None) -> None:
        agent = _same_version(await self.agent(org, agent_id), version)
        keys = [
            key for key in await self._all(KEYS, "by_agent", {"org": org, "agent_id": agent_id}) if not key.revoked_at
        ]
        revocations = [self._revocation(key) for key in keys]
        private = await self._private_profile(org, agent_id)
        last: list[Write] = [Delete(AGENTS, org, agent_id, agent.version)]
        if private is not None:
            last.append(Delete(PROFILES, org, private.id, private.version))
        room = ROOM - len(last)
        while len(revocations) > room:
            await self._changes.commit(*revocations[:ROOM])
            del revocations[:ROOM]
        await self._changes.commit(*revocations, *last)

    # -- profiles ------------------------------------------------------------------------------------------------
    async def create_profile(self, org: str, name: str, spec: Profile) -> ProfileRecord:
        """A profile that several agents may share."""
        _check_profile(spec, "")
        now = self._changes.now()
        record = ProfileRecord(org=org, id=new_id("profile"), name=name, spec=spec, created_at=now, updated_at=now)
        return _first(await self._changes.commit(Insert(PROFILES, record)), ProfileRecord)

    async def profile_of(self, agent: Agent) -> ProfileRecord | None:
        """The profile an agent has, or None: then it may do nothing."""
        if not agent.profile_id:
            return None
        record: ProfileRecord | None = await self._store.get(PROFILES, agent.org, agent.profile_id)
        return record

    async def assign(
        self, org: str, agent_id: str, assignment: Assignment, version: int | None = None
    ) -> tuple[Agent, ProfileRecord]:
        """Give an agent a profile. One it had for itself alone is changed or removed, never left behind.

        NotFound for an unknown agent; ValidationFailed for an unknown preset or profile, another agent's own profile,
        or a profile that makes no sense; Stale when `version` is not the agent's.
        """

        async def attempt() -> tuple[Agent, ProfileRecord]:
            agent = _same_version(await self.agent(org, agent_id), version)
            private = await self._private_profile(org, agent_id)
            writes: list[Write] = []
            record = await self._target(agent, assignment, private, writes)
            if private is not None and record.id != private.id:
                writes.append(Delete(PROFILES, org, private.id, private.version))
            agent.profile_id = record.id
            agent.updated_at = self._changes.now()
            results = await self._changes.commit(Replace(AGENTS, agent), *writes)
            stored = next((item for item in results if isinstance(item, ProfileRecord)), record)
            return _first(results, Agent), stored

        return await _retried(attempt, stale=version is None)

    async def _target(
        self, agent: Agent, assignment: Assignment, private: ProfileRecord | None, writes: list[Write]
    ) -> ProfileRecord:
        """The record that an assignment means; adds to `writes` what must be stored for it."""
        match (assignment.preset, assignment.profile_id, assignment.profile):
            case (str(preset), msgspec.UNSET, msgspec.UNSET):
                return await self._preset_profile(agent.org, preset, writes)
            case (msgspec.UNSET, str(profile_id), msgspec.UNSET):
                return await self._shared_profile(agent, profile_id)
            case (msgspec.UNSET, msgspec.UNSET, Profile() as profile):
                _check_profile(profile, "/profile")
                return self._own_profile(agent, profile, private, writes)
            case _:
                raise ValidationFailed([("", "one_of", "Give exactly one of preset, profile_id and profile.")])

    async def _preset_profile(self, org: str, preset_id: str, writes: list[Write]) -> ProfileRecord:
        try:
            preset = get_preset(preset_id)
        except NotFound as error:
            raise ValidationFailed([("/preset", "unknown_preset", error.message)]) from None
        now = self._changes.now()
        record: ProfileRecord | None = await self._store.get(PROFILES, org, PRESET_PROFILE + preset.id)
        if record is None:
            record = ProfileRecord(
                org=org, id=PRESET_PROFILE + preset.id, name=preset.name, preset=preset.id, spec=preset.profile,
                created_at=now, updated_at=now,
            )  # fmt: skip
            writes.append(Insert(PROFILES, record))
        elif record.spec != preset.profile:  # a newer release of ours says it differently
            record.spec, record.updated_at = preset.profile, now
            writes.append(Replace(PROFILES, record))
        return record

    async def _shared_profile(self, agent: Agent, profile_id: str) -> ProfileRecord:
        record: ProfileRecord | None = await self._store.get(PROFILES, agent.org, profile_id)
        if record is None or record.owner not in {"", agent.id}:
            raise ValidationFailed([("/profile_id", "unknown_profile", f"There is no shared profile {profile_id!r}.")])
        return record

    def _own_profile(
        self, agent: Agent, profile: Profile, private: ProfileRecord | None, writes: list[Write]
    ) -> ProfileRecord:
        now = self._changes.now()
        if private is None:
            private = ProfileRecord(
                org=agent.org, id=new_id("profile"), name=profile.name or agent.name, owner=agent.id, spec=profile,
                created_at=now, updated_at=now,
            )  # fmt: skip
            writes.append(Insert(PROFILES, private))
        else:
            private.spec, private.name, private.updated_at = profile, profile.name or agent.name, now
            writes.append(Replace(PROFILES, private))
        return private

    async def _private_profile(self, org: str, agent_id: str) -> ProfileRecord | None:
        page = await self._store.find(Query(PROFILES, "owner", {"org": org, "owner": agent_id}, limit=1))
        return page.records[0] if page.records else None

    # -- keys ----------------------------------------------------------------------------------------------------
    async def mint(
        self, org: str, spec: KeySpec, *, created_by: str, minter: Principal | None = None
    ) -> tuple[ApiKey, str]:
        """A new key: its record, and the key itself, which is never shown again.

        With `minter` (a key that makes a key) the rules of `gateway.scopes` hold; without one this is the CLI or
        `init`, which own the store. Forbidden, ValidationFailed (all faults), NotFound for another organisation's.
        """
        if minter is not None and minter.org != org:
            raise NotFound
        spec = checked(spec, self._changes.now())
        if minter is not None:
            spec = narrowed(spec, minter)
        if spec.kind == "agent":
            agent: Agent | None = await self._store.get(AGENTS, org, spec.agent_id)
            if agent is None:
                raise ValidationFailed([("/agent_id", "unknown_agent", f"There is no agent {spec.agent_id!r}.")])
            if agent.status == "archived":
                raise ValidationFailed([("/agent_id", "archived", "An archived agent gets no keys.")])
        secret = new_secret()
        record = to_record(spec, org, new_id("key"), secret, created_by=created_by, now=self._changes.now())
        return _first(await self._changes.commit(Insert(KEYS, record)), ApiKey), secret

    async def adopt(self, org: str, agent_id: str, key: str, *, created_by: str, name: str = "") -> ApiKey:
        """Let an agent's own AgenticMail key (`ak_...`) stand for it at the AgenticMail door. Only a digest is kept.
        ValidationFailed; Conflict when the key stands for an agent already."""
        if not key.startswith("ak_") or len(key) < MIN_FOREIGN or not key.isascii() or not key.isprintable():
            raise ValidationFailed([("/key", "invalid", "This is no AgenticMail key of an agent (ak_...).")])
        agent: Agent | None = await self._store.get(AGENTS, org, agent_id)
        if agent is None or agent.status == "archived":
            raise ValidationFailed([("/agent_id", "unknown_agent", f"There is no agent {agent_id!r} to stand for.")])
        spec = KeySpec(agent_id=agent_id, name=name or "AgenticMail key", scopes=(CALL,))
        record = to_record(spec, org, new_id("key"), key, created_by=created_by, now=self._changes.now())
        record.digest, record.prefix = foreign_digest(key), "ak_"
        return _first(await self._changes.commit(Insert(KEYS, record)), ApiKey)

    async def key(self, org: str, key_id: str) -> ApiKey:
        """One key's record. NotFound."""
        found: ApiKey | None = await self._store.get(KEYS, org, key_id)
        if found is None:
            raise NotFound(f"There is no API key {key_id!r}.")
        return found

    async def revoke(self, org: str, key_id: str) -> ApiKey:
        """End a key for good. One that is revoked already stays as it is. NotFound."""

        async def attempt() -> ApiKey:
            key = await self.key(org, key_id)
            if key.revoked_at:
                return key
            return _first(await self._changes.commit(self._revocation(key)), ApiKey)

        return await _retried(attempt)

    def _revocation(self, key: ApiKey) -> Replace:
        key.revoked_at = key.updated_at = self._changes.now()
        return Replace(KEYS, key)

    async def _all(self, entity: Any, index: str, where: dict[str, Any]) -> list[Any]:
        records: list[Any] = []
        cursor = ""
        while True:
            page = await self._store.find(Query(entity, index, where, limit=MAX_PAGE, cursor=cursor))
            records += page.records
            cursor = page.cursor
            if not cursor:
                return records


def canonical_email(email: str) -> str:
    """An address as it is stored and looked up. ValidationFailed when it is none."""
    address = email.strip().lower()
    if not _EMAIL.fullmatch(address):
        raise ValidationFailed([("/email", "invalid", f"{email!r} is no e-mail address.")])
    return address


def _check_profile(spec: Profile, path: str) -> None:
    """Raises ValidationFailed with the paths below `path`, where the profile stands in the body."""
    faults = validate_profile(spec)
    if faults:
        raise ValidationFailed([(path + fault, code, message) for fault, code, message in faults])


def _revalidate(spec: AgentSpec | AgentChange) -> None:
    """Hold a spec made in code to the same limits as one that came as JSON."""
    try:
        msgspec.convert(msgspec.to_builtins(spec), type(spec))
    except msgspec.ValidationError as error:
        sentence, _, where = str(error).partition(" - at `$")
        path = where.rstrip("`").replace(".", "/").replace("[...]", "")
        raise ValidationFailed([(path, "invalid", f"{sentence}.")], f"{path.lstrip('/')}: {sentence}.") from None


def _same_version(agent: Agent, version: int | None) -> Agent:
    if version is not None and agent.version != version:
        raise Stale
    return agent


def _first(results: Sequence[Any], kind: type[T]) -> T:
    """The stored record of the first write, which the store gives back for Insert and Replace."""
    record: T = results[0]
    return record


async def _retried(attempt: Callable[[], Awaitable[T]], *, stale: bool = True) -> T:
    """Run a read-decide-write again while others get in between. `stale=False`: the caller named a version."""
    for _ in range(ATTEMPTS - 1):
        try:
            return await attempt()
        except Stale:
            if not stale:
                raise
        except Conflict as error:
            if error.index not in {"id", "owner"}:  # a name that is taken stays taken
                raise
    return await attempt()
