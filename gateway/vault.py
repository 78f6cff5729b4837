"""Secrets at rest: AES-256-GCM under a named key, bound to the place where the secret is stored.

A sealed secret reads `v1.<key id>.<base64url of nonce, ciphertext and tag>`. Its additional data are the organisation,
table, column and row, so that a value copied into another row (or another tenant's) does not open there.

Keys come from the settings (`secret_key`: one or more, separated by commas) or from `data_dir/secret.key` (one a line).
The first key seals and all of them open, so a rotation is: put a new key first, seal everything again, drop the old.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ..catalog.errors import SecretError
from .settings import Settings

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
"""96 bits, drawn at random: NIST SP 800-38D allows 2**32 seals under one key that way."""

FORMAT: Final = "v1"
KEY_FILE: Final = "secret.key"

Aad = tuple[str, str, str, str]
"""(organisation, table, column, row id)."""


class Vault:
    """Seals and opens. Holds the keys in memory; its repr shows none of them."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        """`keys`: 32 bytes each, the sealing one first. SecretError when there is none, or one of another length."""
        if not keys or any(len(key) != KEY_BYTES for key in keys):
            raise SecretError(f"A vault needs one key or more, of {KEY_BYTES} bytes each.")
        self._first = keys[0]
        self._keys = {key_id(key): key for key in keys}
        self._ciphers = {key_id(key): AESGCM(key) for key in keys}
        self.current = key_id(keys[0])

    @classmethod
    def load(cls, settings: Settings, *, create: bool = False) -> Vault:
        """The vault of the settings. `secret_key` wins over the file; with `create` a missing file is made.

        Raises SecretError: no key anywhere, an unreadable one, or a key file that others may read.
        """
        if settings.secret_key:
            return cls(parse_keys(settings.secret_key))
        path = Path(settings.data_dir) / KEY_FILE
        if create and not os.path.lexists(path):
            create_key_file(path)
        return cls(read_key_file(path))

    def __repr__(self) -> str:
        return f"<Vault current={self.current} keys={len(self._ciphers)}>"

    def seal(self, plain: str, aad: Aad) -> str:
        """The secret as it may be stored. Different each time."""
        nonce = os.urandom(NONCE_BYTES)
        sealed = nonce + self._ciphers[self.current].encrypt(nonce, plain.encode(), _bytes_of(aad))
        return f"{FORMAT}.{self.current}.{base64.urlsafe_b64encode(sealed).decode().rstrip('=')}"

    def open(self, sealed: str, aad: Aad) -> str:
        """The secret of `sealed`. SecretError when the key is unknown, the place is another or a bit was changed."""
        version, _, rest = sealed.partition(".")
        key, _, payload = rest.partition(".")
        cipher = self._ciphers.get(key)
        if version != FORMAT or cipher is None:
            raise SecretError(key_id=key)
        try:
            data = base64.b64decode(payload + "=" * (-len(payload) % 4), altchars=b"-_", validate=True)
            return cipher.decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], _bytes_of(aad)).decode()
        except (InvalidTag, ValueError, binascii.Error):
            raise SecretError("A stored secret was changed, or belongs to another record.", key_id=key) from None

    def is_current(self, sealed: str) -> bool:
        """False when the secret should be sealed again under the first key."""
        return sealed.startswith(f"{FORMAT}.{self.current}.")

    def derive(self, purpose: bytes) -> bytes:
        """32 bytes for another use (`mcp-session`, `cursor`), the same in every worker: HMAC-SHA-256 of the purpose."""
        return hmac.digest(self._first, b"derive:" + purpose, hashlib.sha256)

    def derived(self, purpose: bytes) -> dict[str, bytes]:
        """As `derive`, for every key: key id -> 32 bytes, so that what an older key signed can still be checked."""
        return {name: hmac.digest(key, b"derive:" + purpose, hashlib.sha256) for name, key in self._keys.items()}


def key_id(key: bytes) -> str:
    """The name of a key: 8 hex digits that say nothing about it."""
    return hashlib.sha256(b"key id:" + key).hexdigest()[:8]


def new_key() -> str:
    """A new key as settings and key file hold it: 32 random bytes in base64."""
    return base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()


def parse_keys(text: str) -> list[bytes]:
    """Keys from text: base64, separated by commas or new lines; lines that begin with `#` are comments."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    words = [word.strip() for line in lines for word in line.split(",") if word.strip()]
    keys: list[bytes] = []
    for place, word in enumerate(words, 1):
        try:
            key = base64.b64decode(word, validate=True)
        except (binascii.Error, ValueError):
            raise SecretError(f"Secret key {place} is not base64.") from None
        if len(key) != KEY_BYTES:
            raise SecretError(f"Secret key {place} holds {len(key)} bytes; it needs {KEY_BYTES}.")
        keys.append(key)
    return keys


def read_key_file(path: Path) -> list[bytes]:
    """The keys of a file, which only its owner may read."""
    try:
        with path.open(encoding="ascii") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read()
    except FileNotFoundError:
        raise SecretError(f"There is no key file {path}. `agenticmail-enterprise init` makes one.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SecretError(f"The key file {path} cannot be read: {error}.") from None
    if mode & 0o077:
        raise SecretError(f"Others may read the key file {path}. Mend it: chmod 600 {path}")
    return parse_keys(text)


def create_key_file(path: Path) -> None:
    """Make a key file with one new key, mode 0600, whole or not at all. One that is there already stays as it is."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SecretError(f"The folder of the key file {path} cannot be made: {error}.") from None
    _place(path, f"{new_key()}\n", replace=False)


def add_key(path: Path) -> None:
    """Put a new key first. From then on it seals; the older ones still open."""
    read_key_file(path)
    _place(path, f"{new_key()}\n{path.read_text(encoding='ascii')}", replace=True)


def _place(path: Path, text: str, *, replace: bool) -> None:
    """Write a sibling, sync it and give it the name: no reader ever sees half a file, nor wider permissions."""
    sibling = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(sibling, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            sibling.replace(path)
        else:
            _link(sibling, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise SecretError(f"The key file {path} cannot be written: {error}.") from None
    finally:
        sibling.unlink(missing_ok=True)


def _link(sibling: Path, path: Path) -> None:
    """Give the file its name unless it is taken: of several processes that start at once, one key wins for all."""
    try:
        os.link(sibling, path)
    except FileExistsError:
        return


def _bytes_of(aad: Aad) -> bytes:
    # JSON keeps the parts apart whatever characters they hold.
    return msgspec.json.encode(aad)
