"""From nothing to a gateway that can serve: database, key file, organisation, owner, first API key, settings file.

Nothing that exists is ever overwritten: whatever of it is there already stops the setup before it has changed anything.
There is no default password: one is generated unless it is given.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import msgspec

from ..catalog.errors import Conflict, SettingsError, ValidationFailed
from ..catalog.records import ORGS, USERS
from ..catalog.store import GLOBAL, Query, Store
from .accounts import NAME, Accounts
from .audit import Trail, shell_actor
from .keys import DEFAULT_DAYS, KeySpec
from .passwords import check_strength, generate
from .scopes import EVERY
from .settings import Port, Settings, url_of
from .settings_load import FILE_NAME, anchored
from .stores import database_file, database_url, open_store
from .vault import KEY_FILE, create_key_file, read_key_file

DAY_MS: Final = 24 * 3600 * 1000
_EMAIL: Final = re.compile(r"[^@\s\x00-\x1f\x7f]{1,64}@[^@\s\x00-\x1f\x7f]{1,189}")


class Answers(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Everything the setup asks. Also what an answers file (TOML) may say; `password` "" generates one."""

    company: Annotated[str, msgspec.Meta(max_length=128)] = ""
    email: Annotated[str, msgspec.Meta(max_length=254)] = ""
    database: str = ""
    password: str = ""
    host: str = ""
    port: Port | None = None
    data_dir: str = ""


class Made(msgspec.Struct, kw_only=True):
    """What the setup made. `password` is None when it was given; `api_key` is shown here and never again."""

    url: str
    email: str
    password: str | None
    api_key: str
    company: str
    org: str
    database: str
    config: str
    data_dir: str


def faults_of(answers: Answers) -> list[tuple[str, str, str]]:
    """What is wrong with the answers, all of it: (JSON Pointer, code, sentence)."""
    faults: list[tuple[str, str, str]] = []
    if not re.fullmatch(NAME, answers.company) or len(answers.company) > 128:
        faults.append(("/company", "invalid", "A company name has 1 to 128 printable characters."))
    if not _EMAIL.fullmatch(answers.email.strip()):
        sentence = f"{answers.email!r} is no e-mail address." if answers.email else "Say whose e-mail address it is."
        faults.append(("/email", "invalid", sentence))
    if not answers.database:
        faults.append(("/database", "required", "Say which database, e.g. sqlite:///agenticmail-enterprise.db."))
    if answers.password:
        try:
            check_strength(answers.password)
        except ValidationFailed as error:
            faults += [(field["path"], field["code"], field["message"]) for field in error.details["fields"]]
    return faults


async def initialise(answers: Answers, settings: Settings, config: Path) -> Made:
    """Set everything up. `settings` are the effective ones (answers included); `config` is the file to write.

    Raises ValidationFailed, SettingsError (something exists already, or cannot be made), StoreError.
    """
    faults = faults_of(answers)
    if faults:
        raise ValidationFailed(faults, faults[0][2] if len(faults) == 1 else None)
    data_dir = Path(settings.data_dir)
    _refuse_existing(config, data_dir / KEY_FILE, own_key=not settings.secret_key)
    _make_folders(settings, config)
    store = open_store(database_url(settings))
    await store.open()
    try:
        await store.migrate()
        await _refuse_used(store, settings.database, answers.email)
        with _files(settings, answers, config):
            org, password, secret = await _first_people(store, answers)
    finally:
        await store.close()
    return Made(
        url=url_of(settings.server.host, settings.server.port), email=answers.email.strip().lower(),
        password=None if answers.password else password, api_key=secret, company=answers.company, org=org,
        database=settings.database, config=str(config), data_dir=os.path.abspath(data_dir),  # noqa: ASYNC240
    )  # fmt: skip


def _refuse_existing(config: Path, key_file: Path, *, own_key: bool) -> None:
    there = [str(file) for file, matters in ((config, True), (key_file, own_key)) if matters and file.exists()]
    if there:
        raise SettingsError(
            f"Set up already: {' and '.join(there)} exist{'s' if len(there) == 1 else ''}. Nothing was changed.",
            exists=there, hint="agenticmail-enterprise serve starts it; doctor says what may be wrong with it.",
        )  # fmt: skip


def _make_folders(settings: Settings, config: Path) -> None:
    file = database_file(settings.database)
    for folder, mode in ((Path(settings.data_dir), 0o700), (config.parent, 0o755), (file and file.parent, 0o755)):
        if folder is None:
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=mode)
        except OSError as error:
            raise SettingsError(f"The folder {folder} cannot be made: {error.strerror}.") from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise SettingsError(f"The folder {folder} is not writable.")


@contextmanager
def _files(settings: Settings, answers: Answers, config: Path) -> Iterator[None]:
    """Key file and settings file, for as long as what follows succeeds: a setup that fails leaves neither behind."""
    key_file = Path(settings.data_dir) / KEY_FILE
    made: list[Path] = []
    try:
        if not settings.secret_key:
            create_key_file(key_file)
            made.append(key_file)
            read_key_file(key_file)
        _write_config(config, answers, settings)
        made.append(config)
        yield
    except BaseException:
        for file in made:
            file.unlink(missing_ok=True)
        raise


async def _refuse_used(store: Store, database: str, email: str) -> None:
    from .logs import masked_text

    page = await store.find(Query(ORGS, "by_org", {"org": GLOBAL}, limit=1))
    if page.records:
        shown = masked_text(database)
        raise SettingsError(
            f"Set up already: {shown} holds the organisation {page.records[0].name!r}. Nothing was changed.",
            exists=[shown], hint="Choose another --database, or serve with this one.",
        )  # fmt: skip
    page = await store.find(Query(USERS, "email", {"email": email.strip().lower()}, limit=1))
    if page.records:
        raise Conflict("email", f"{email} belongs to somebody in this database already.")


async def _first_people(store: Store, answers: Answers) -> tuple[str, str, str]:
    """(organisation id, password, API key)."""
    accounts = Accounts(store)
    password = answers.password or generate()
    org = await accounts.create_org(answers.company)
    await accounts.create_user(org.id, answers.email, password, role="owner")
    expires = org.created_at + DEFAULT_DAYS * DAY_MS
    spec = KeySpec(kind="program", name="owner (from init)", scopes=(EVERY,), expires_at=expires)
    record, secret = await accounts.mint(org.id, spec, created_by="init")
    await Trail(store).write(org.id, shell_actor(), "org.create", org.id, {"name": org.name, "key": record.id})
    return org.id, password, secret


def _write_config(config: Path, answers: Answers, settings: Settings) -> None:
    """The settings file: what was answered, and where the data is. It holds no secret of ours; a database URL may."""
    import tomlkit

    database, data_dir = (_placed(path, getattr(settings, path), config.parent) for path in ("database", "data_dir"))
    document = tomlkit.document()
    document.add(tomlkit.comment("AgenticMail Enterprise. `agenticmail-enterprise settings show` lists every setting."))
    document.add("database", database)
    document.add("data_dir", data_dir)
    server = tomlkit.table()
    if answers.host:
        server.add("host", answers.host)
    if answers.port is not None:
        server.add("port", answers.port)
    if len(server):
        document.add("server", server)
    try:
        descriptor = os.open(config, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(tomlkit.dumps(document))
    except OSError as error:
        raise SettingsError(f"The settings file {config} cannot be written: {error.strerror}.") from error


def _placed(path: str, value: str, home: Path) -> str:
    """A setting's path as the file says it: relative to the file's folder `home` where it lies inside."""
    whole = anchored(path, value, Path.cwd())
    inside = f"{home.absolute()}/"
    return whole.replace(inside, "" if path == "database" else "./", 1) if inside in whole else whole


def default_config() -> Path:
    """Where `init` writes the settings."""
    return Path.cwd() / FILE_NAME
