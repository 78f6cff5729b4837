"""Passwords are hashed off the loop, a few at a time, and weak ones never get that far."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from argon2 import PasswordHasher

from agenticmail_enterprise.catalog.errors import ValidationFailed
from agenticmail_enterprise.gateway.passwords import MAX_LENGTH, MIN_LENGTH, Passwords, check_strength, generate

CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
GOOD = "a fine long password"


async def test_a_password_verifies_against_its_own_hash_only() -> None:
    passwords = Passwords(CHEAP)
    hashed = await passwords.hash(GOOD)
    assert hashed.startswith("$argon2id$")
    assert await passwords.verify(hashed, GOOD)
    assert not await passwords.verify(hashed, GOOD + " ")
    assert await passwords.hash(GOOD) != hashed


@pytest.mark.parametrize("hashed", ["", "plain", "$argon2id$broken", "$2b$12$abcdefghijklmnopqrstuv"])
async def test_an_unreadable_hash_is_nobodys_password(hashed: str) -> None:
    assert not await Passwords(CHEAP).verify(hashed, GOOD)


async def test_an_endless_password_costs_nothing() -> None:
    passwords = Passwords(CHEAP)
    hashed = await passwords.hash(GOOD)
    assert not await passwords.verify(hashed, "x" * (MAX_LENGTH + 1))


@pytest.mark.parametrize(
    ("password", "code"),
    [("short", "too_short"), ("x" * (MIN_LENGTH - 1), "too_short"), ("ab" * 10, "too_common"),
     ("PasswordPassword", "too_common"), ("abcd" * 65, "too_long")],
)  # fmt: skip
def test_weak_passwords_are_refused_with_a_reason(password: str, code: str) -> None:
    with pytest.raises(ValidationFailed) as caught:
        check_strength(password)
    assert caught.value.details["fields"][0]["code"] == code


def test_generated_passwords_are_strong_and_never_the_same() -> None:
    made = {generate() for _ in range(100)}
    assert len(made) == 100
    for password in made:
        check_strength(password)


async def test_no_more_than_two_hashes_run_at_once_and_the_loop_stays_free() -> None:
    running, most = 0, 0
    lock = threading.Lock()

    class Slow(PasswordHasher):
        def hash(self, password: str | bytes, *, salt: bytes | None = None) -> str:
            nonlocal running, most
            assert threading.current_thread() is not threading.main_thread()
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.01)
            with lock:
                running -= 1
            return "$"

    passwords = Passwords(Slow(), at_once=2)
    await asyncio.gather(*(passwords.hash(f"{GOOD} {number}") for number in range(10)))
    assert most == 2


async def test_a_hash_with_other_costs_is_outdated() -> None:
    hashed = await Passwords(CHEAP).hash(GOOD)
    assert not Passwords(CHEAP).is_outdated(hashed)
    assert Passwords(PasswordHasher(time_cost=2, memory_cost=16, parallelism=1)).is_outdated(hashed)
    assert Passwords(CHEAP).is_outdated("")
