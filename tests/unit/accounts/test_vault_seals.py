"""Secrets at rest open only with their key and in their place, and the key file is made once, whole and private."""

from __future__ import annotations

import base64
import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenticmail_enterprise.catalog.errors import SecretError
from agenticmail_enterprise.gateway.settings import Settings
from agenticmail_enterprise.gateway.vault import (
    KEY_FILE,
    Vault,
    add_key,
    create_key_file,
    new_key,
    parse_keys,
    read_key_file,
)

PLACE = ("org_a", "upstream", "secrets.Authorization", "ups_1")
OLD, NEW = b"o" * 32, b"n" * 32


@given(st.text(max_size=200))
def test_whatever_is_sealed_opens_to_the_same_text_and_never_looks_like_it(plain: str) -> None:
    vault = Vault([OLD])
    sealed = vault.seal(plain, PLACE)
    assert vault.open(sealed, PLACE) == plain
    assert len(plain) < 8 or plain not in sealed
    assert vault.seal(plain, PLACE) != sealed


@pytest.mark.parametrize("part", range(4))
def test_a_secret_copied_into_another_place_does_not_open_there(part: int) -> None:
    vault = Vault([OLD])
    sealed = vault.seal("token", PLACE)
    elsewhere = tuple(f"{text}x" if place == part else text for place, text in enumerate(PLACE))
    with pytest.raises(SecretError):
        vault.open(sealed, elsewhere)  # type: ignore[arg-type]


def test_parts_of_a_place_cannot_be_shifted_into_each_other() -> None:
    vault = Vault([OLD])
    sealed = vault.seal("token", ("a", "b,c", "d", "e"))
    with pytest.raises(SecretError):
        vault.open(sealed, ("a", "b", "c,d", "e"))


def test_every_changed_character_of_a_sealed_secret_is_noticed() -> None:
    vault = Vault([OLD])
    sealed = vault.seal("token", PLACE)
    for place, char in enumerate(sealed):
        changed = sealed[:place] + ("A" if char != "A" else "B") + sealed[place + 1 :]
        # The last character of base64 may carry bits that stand for nothing.
        try:
            assert vault.open(changed, PLACE) == "token"
            assert place == len(sealed) - 1
        except SecretError:
            pass


@pytest.mark.parametrize(
    "sealed", ["", "v1", "v1.", "v1.x.y", "v2.a.b", "plain text", "v1.{key}.", "v1.{key}.====", "v1.{key}.é"]
)
def test_garbage_is_a_secret_error_and_nothing_else(sealed: str) -> None:
    vault = Vault([OLD])
    with pytest.raises(SecretError):
        vault.open(sealed.replace("{key}", vault.current), PLACE)


def test_rotation_seals_with_the_first_key_and_opens_with_all_of_them() -> None:
    before = Vault([OLD]).seal("token", PLACE)
    both = Vault([NEW, OLD])
    after = both.seal(both.open(before, PLACE), PLACE)
    assert not both.is_current(before)
    assert both.is_current(after)
    assert Vault([NEW]).open(after, PLACE) == "token"
    with pytest.raises(SecretError):
        Vault([NEW]).open(before, PLACE)


def test_derived_keys_differ_by_purpose_and_agree_between_workers() -> None:
    assert Vault([OLD]).derive(b"cursor") == Vault([OLD, NEW]).derive(b"cursor")
    assert Vault([OLD]).derive(b"cursor") != Vault([OLD]).derive(b"mcp-session")
    assert len(Vault([OLD]).derive(b"cursor")) == 32


def test_a_vault_shows_no_key() -> None:
    assert "oooo" not in repr(Vault([OLD]))
    assert "oooo" not in str(vars(Vault([OLD]))["_ciphers"])


@pytest.mark.parametrize("keys", [[], [b"short"], [OLD, b""]])
def test_a_vault_without_a_whole_key_is_refused(keys: list[bytes]) -> None:
    with pytest.raises(SecretError):
        Vault(keys)


@pytest.mark.parametrize("text", ["not base64!", base64.b64encode(b"short").decode(), "a,b"])
def test_a_bad_key_is_named_by_its_place_and_not_by_its_content(text: str) -> None:
    with pytest.raises(SecretError, match="key 1") as caught:
        parse_keys(text)
    assert text not in caught.value.message


# -- the key file ------------------------------------------------------------------------------------------------
def test_init_makes_a_private_key_file_and_a_second_init_keeps_it(tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path / "data"))
    first = Vault.load(settings, create=True)
    path = tmp_path / "data" / KEY_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Vault.load(settings, create=True).current == first.current == Vault.load(settings).current
    assert os.listdir(path.parent) == [KEY_FILE]


def test_without_create_a_missing_file_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SecretError, match="init"):
        Vault.load(Settings(data_dir=str(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_many_starts_at_once_agree_on_one_key(tmp_path: Path) -> None:
    path = tmp_path / KEY_FILE
    seen: list[list[bytes]] = []
    start = threading.Barrier(8)

    def begin() -> None:
        start.wait()
        create_key_file(path)
        seen.append(read_key_file(path))

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8
    assert all(keys == seen[0] for keys in seen)
    assert os.listdir(tmp_path) == [KEY_FILE]


def test_a_key_file_that_others_may_read_is_refused_with_the_command_that_mends_it(tmp_path: Path) -> None:
    path = tmp_path / KEY_FILE
    create_key_file(path)
    path.chmod(0o640)
    with pytest.raises(SecretError, match="chmod 600"):
        Vault.load(Settings(data_dir=str(tmp_path)))


def test_adding_a_key_puts_it_first_and_keeps_the_file_private(tmp_path: Path) -> None:
    path = tmp_path / KEY_FILE
    create_key_file(path)
    settings = Settings(data_dir=str(tmp_path))
    sealed = Vault.load(settings).seal("token", PLACE)
    add_key(path)
    rotated = Vault.load(settings)
    assert rotated.open(sealed, PLACE) == "token"
    assert not rotated.is_current(sealed)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_settings_key_wins_over_the_file(tmp_path: Path) -> None:
    create_key_file(tmp_path / KEY_FILE)
    key = new_key()
    vault = Vault.load(Settings(data_dir=str(tmp_path), secret_key=f"{key}, {new_key()}"))
    assert vault.current == Vault(parse_keys(f"# old\n{key}\n")).current


def test_a_data_dir_that_cannot_be_made_is_a_secret_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SecretError):
        Vault.load(Settings(data_dir=str(tmp_path / "file" / "below")), create=True)
