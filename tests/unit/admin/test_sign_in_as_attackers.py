"""Signing in, as somebody tries who should not: guessing, probing for accounts, forged and stolen tokens."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import jwt
import pytest

from agenticmail_enterprise.catalog.errors import SignInFailed, Unauthenticated
from agenticmail_enterprise.catalog.records import SESSIONS
from agenticmail_enterprise.catalog.store import Query
from agenticmail_enterprise.gateway.people import totp
from agenticmail_enterprise.gateway.people.signin import MAX_HASHING, Attempt
from agenticmail_enterprise.gateway.people.throttle import ACCOUNT, CODES, SOURCE, account_of
from agenticmail_enterprise.gateway.people.tokens import ACCESS, CHALLENGE, Tokens
from agenticmail_enterprise.gateway.vault import Vault

from .conftest import PASSWORD

NEW = "another good password"


async def login(site: Any, email: str, password: str = PASSWORD, **more: Any) -> Any:
    headers = more.pop("headers", None)
    return await site.call(
        "POST", "/auth/login", {"email": email, "password": password, **more}, key="", headers=headers
    )


async def second_factor(site: Any, user: Any) -> str:
    """Switch one on; its secret."""
    secret = totp.new_secret()
    await site.people.factors.keep_pending(user, secret)
    await site.people.factors.confirm(user, code(site, secret))
    site.clock.pass_(90)
    return secret


def code(site: Any, secret: str, steps: int = 0) -> str:
    return totp.code_at(secret, totp.step_of(site.clock()) + steps)


def told(answer: Any) -> Any:
    """An error without what differs each time."""
    return (answer.status, {name: value for name, value in answer.json.items() if name != "request_id"})


# -- who exists? -------------------------------------------------------------------------------------------------
async def test_no_answer_tells_whether_somebody_exists(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    here, away = await site.person("member"), await site.person("member")
    boss = await site.token(await site.person("owner"))
    await site.as_(boss, "PUT", f"/api/users/{away.id}", {"name": "", "status": "suspended"})
    invited = await site.as_(boss, "POST", "/api/users", {"email": "invited@acme.test"})
    assert invited.status == 201
    work: list[str] = []
    verify = site.people.sign_in._passwords.verify

    async def counted(hashed: str, password: str) -> bool:
        work.append(hashed)
        return await verify(hashed, password)

    monkeypatch.setattr(site.people.sign_in._passwords, "verify", counted)
    answers = [
        await login(site, here.email, "wrong password 1"), await login(site, "nobody@acme.test"),
        await login(site, away.email), await login(site, "invited@acme.test"), await login(site, "no address at all"),
    ]  # fmt: skip
    assert {json.dumps(told(answer)) for answer in answers} == {json.dumps(told(answers[0]))}
    assert told(answers[0])[0] == 401
    assert len(work) == len(answers), "a hash is computed each time"
    assert all(hashed.startswith("$argon2id$") for hashed in work)


async def test_a_lost_password_is_asked_for_without_telling_who_exists(site: Any) -> None:
    user = await site.person("member")
    answers = [
        await site.call("POST", "/auth/forgot-password", {"email": email}, key="")
        for email in (user.email, "nobody@acme.test", "no address")
    ]
    assert {(answer.status, answer.body) for answer in answers} == {(200, answers[0].body)}
    await site.people.settle()
    noted = [entry for entry in await site.audit() if entry.action == "auth.forgot_password"]
    assert [(entry.actor, entry.resource) for entry in noted] == [("anonymous", user.id)]


async def test_throttling_is_the_same_for_whoever_does_not_exist(site: Any) -> None:
    user = await site.person("member")
    counts = []
    for email in (user.email, "nobody@acme.test"):
        tried = 0
        while (await login(site, email, "wrong password 1")).status == 401:
            tried += 1
        counts.append(tried)
        site.ticks.pass_(10_000)
    assert counts == [SOURCE.burst, SOURCE.burst]


# -- guessing ----------------------------------------------------------------------------------------------------
async def test_guessing_from_one_place_ends_soon_and_the_right_password_does_not_help_there(site: Any) -> None:
    user, own = await site.person("member"), await site.person("member")
    for number in range(SOURCE.burst):
        # a successful sign-in to one's own account in between gives nothing back
        if number % 5 == 4:
            assert (await login(site, own.email)).status == 200
        else:
            assert (await login(site, user.email, f"wrong password {number}")).status == 401
    answer = await login(site, user.email)
    assert (answer.status, answer.json["code"]) == (429, "RATE_LIMITED")
    assert int(answer.headers["Retry-After"]) >= 1


async def test_a_flood_of_guesses_from_everywhere_does_not_lock_the_owner_out(site: Any) -> None:
    owner = await site.person("owner")
    site.ticks.pass_(10_000)
    device = (await login(site, owner.email)).json["data"]["device"]
    throttle = site.people.throttle
    account = account_of(owner.email)

    async def unfamiliar() -> bool:
        return False

    refused = 0
    for number in range(ACCOUNT.burst * 3):  # each from an address of its own
        try:
            await throttle.sign_in(f"198.51.{number // 250}.{number % 250}", account, "", unfamiliar)
        except Exception:
            refused += 1
    assert refused >= ACCOUNT.burst * 2 - 1, "strangers are slowed down"
    # The owner, from an address with a live session; from anywhere with the mark of their device; by link.
    assert (await login(site, owner.email)).status == 200
    assert site.people.tokens.device_of(account, device)
    await throttle.sign_in("203.0.113.9", account, site.people.tokens.device_of(account, device), unfamiliar)
    link = await site.people.tickets.issue(owner, "sign_in", "cli")
    assert (await site.call("POST", "/auth/login/link", {"token": link.token}, key="")).status == 200


async def test_a_flood_that_keeps_the_hasher_busy_turns_strangers_away_and_not_the_owner(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = await site.person("owner")
    device = (await login(site, owner.email)).json["data"]["device"]
    sign_in = site.people.sign_in
    release, verify = asyncio.Event(), sign_in._passwords.verify

    async def slow(hashed: str, password: str) -> bool:
        await release.wait()
        return await verify(hashed, password)

    monkeypatch.setattr(sign_in._passwords, "verify", slow)
    attempts = [
        asyncio.create_task(
            sign_in.with_password(f"a{number}@acme.test", "x", "", Attempt(f"198.51.100.{number}"), "token")
        )
        for number in range(MAX_HASHING)
    ]
    while sign_in._hashing < MAX_HASHING:
        await asyncio.sleep(0)
    assert (await login(site, "another@acme.test")).status == 429
    mine = asyncio.create_task(login(site, owner.email, device=device))
    while sign_in._hashing == MAX_HASHING:
        await asyncio.sleep(0)
    release.set()
    assert (await mine).status == 200
    assert all(isinstance(error, SignInFailed) for error in await asyncio.gather(*attempts, return_exceptions=True))
    assert sign_in._hashing == 0


async def test_a_device_mark_is_good_for_its_own_account_and_cannot_be_made_up(site: Any) -> None:
    tokens = site.people.tokens
    mark = tokens.device("a")
    assert tokens.device_of("a", mark)
    for account, changed in (("b", mark), ("a", mark[:-1] + "0" * (mark[-1] != "0") + "1" * (mark[-1] == "0")),
                             ("a", "dv_x.1.y"), ("a", ""), ("a", "dv_"), ("a", mark + "é")):  # fmt: skip
        assert tokens.device_of(account, changed) == "", changed
    site.clock.pass_(181 * 86_400)
    assert tokens.device_of("a", mark) == ""


async def test_codes_of_the_second_factor_cannot_be_guessed_in_a_row(site: Any) -> None:
    user = await site.person("member")
    secret = await second_factor(site, user)
    challenge = (await login(site, user.email)).json["details"]["challenge"]
    wrong = f"{(int(code(site, secret)) + 7) % 1_000_000:06}"
    seen = []
    for _ in range(CODES.burst + 2):
        answer = await site.call(
            "POST", "/auth/login/second-factor", {"challenge": challenge, "code": wrong}, key=""
        )  # fmt: skip
        seen.append(answer.status)
    assert seen[: CODES.burst] == [401] * CODES.burst
    assert set(seen[CODES.burst :]) == {429}


# -- the second factor -------------------------------------------------------------------------------------------
async def test_the_password_alone_opens_nothing_where_a_second_factor_is_on(site: Any) -> None:
    user = await site.person("member")
    secret = await second_factor(site, user)
    answer = await login(site, user.email)
    assert (answer.status, answer.json["code"]) == (401, "SECOND_FACTOR_REQUIRED")
    assert "token" not in answer.json["details"]
    challenge = answer.json["details"]["challenge"]
    assert (await site.as_(challenge, "GET", "/auth/me")).status == 401, "a challenge is no access token"
    assert (await login(site, user.email, "wrong password 1", code=code(site, secret))).json["code"] == "SIGN_IN_FAILED"
    done = await site.call(
        "POST", "/auth/login/second-factor", {"challenge": challenge, "code": code(site, secret)}, key=""
    )
    assert done.status == 200
    access = done.json["data"]["token"]
    body = {"challenge": access, "code": code(site, secret, 1)}
    assert (await site.call("POST", "/auth/login/second-factor", body, key="")).status == 401


async def test_a_code_is_taken_once_and_none_from_before_it(site: Any) -> None:
    user = await site.person("member")
    secret = await second_factor(site, user)
    now = code(site, secret)
    before = code(site, secret, -1)
    assert (await login(site, user.email, code=now)).status == 200
    assert (await login(site, user.email, code=now)).status == 401, "a replay"
    assert (await login(site, user.email, code=before)).status == 401, "within the drift, but older than the last"
    site.ticks.pass_(10_000)
    both = await asyncio.gather(*(login(site, user.email, code=code(site, secret, 1)) for _ in range(2)))
    assert sorted(answer.status for answer in both) == [200, 401], "of twins one wins"


async def test_the_code_that_switched_it_on_cannot_be_used_again(site: Any) -> None:
    user = await site.person("member")
    secret = totp.new_secret()
    await site.people.factors.keep_pending(user, secret)
    used = code(site, secret)
    await site.people.factors.confirm(user, used)
    assert (await login(site, user.email, code=used)).status == 401


async def test_recovery_codes_are_good_once_each(site: Any) -> None:
    user = await site.person("member")
    token = await site.token(user)
    setup = (await site.as_(token, "POST", "/auth/2fa/setup", {"password": PASSWORD})).json["data"]
    confirm = await site.as_(token, "POST", "/auth/2fa/confirm", {"code": code(site, setup["secret"])})
    codes = confirm.json["data"]["recovery_codes"]
    assert len(set(codes)) == 10
    stored = str(await site.people.factors.of(user))
    assert not any(item in stored or item.replace("-", "") in stored for item in codes)
    assert setup["secret"] not in stored
    first = codes[0].upper().replace("-", " ")  # as people type
    assert (await login(site, user.email, code=first)).status == 200
    assert (await login(site, user.email, code=codes[0])).status == 401
    me = (await site.as_(token, "GET", "/auth/me")).json["data"]
    assert (me["second_factor"], me["recovery_codes_left"]) == (True, 9)


async def test_a_stolen_access_token_cannot_touch_the_second_factor_or_the_password(site: Any) -> None:
    user = await site.person("member")
    stolen = await site.token(user)
    for path, body in (
        ("/auth/2fa/setup", {"password": "a guess of mine"}), ("/auth/2fa/disable", {"password": "a guess of mine"}),
        ("/auth/password", {"current_password": "a guess of mine", "new_password": NEW}),
    ):  # fmt: skip
        answer = await site.as_(stolen, "POST", path, body)
        assert (answer.status, set(answer.fields.values())) == (422, {"wrong_password"})
    assert not await site.people.factors.is_on(user)
    for _ in range(20):
        answer = await site.as_(stolen, "POST", "/auth/2fa/setup", {"password": "a guess of mine"})
    assert answer.status == 429
    site.ticks.pass_(10_000)
    secret = await second_factor(site, user)
    answer = await site.as_(stolen, "POST", "/auth/2fa/disable", {"password": PASSWORD})
    assert (answer.status, answer.json["code"]) == (401, "SECOND_FACTOR_REQUIRED")
    answer = await site.as_(stolen, "POST", "/auth/2fa/disable", {"password": PASSWORD, "code": "000000"})
    assert answer.status in {422, 429}
    assert await site.people.factors.is_on(user)
    assert (
        await site.as_(stolen, "POST", "/auth/2fa/disable", {"password": PASSWORD, "code": code(site, secret)})
    ).status == 200


async def test_a_challenge_ends_with_the_password_and_with_time(site: Any) -> None:
    user = await site.person("member")
    token = await site.token(user)
    secret = await second_factor(site, user)
    old = (await login(site, user.email)).json["details"]["challenge"]
    body = {"current_password": PASSWORD, "new_password": NEW}
    assert (await site.as_(token, "POST", "/auth/password", body)).status == 200
    body = {"challenge": old, "code": code(site, secret)}
    assert (await site.call("POST", "/auth/login/second-factor", body, key="")).status == 401
    late = (await login(site, user.email, NEW)).json["details"]["challenge"]
    site.clock.pass_(301)
    body = {"challenge": late, "code": code(site, secret)}
    assert (await site.call("POST", "/auth/login/second-factor", body, key="")).status == 401


# -- forged tokens -----------------------------------------------------------------------------------------------
def b64(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


async def test_forged_tokens_open_nothing(site: Any) -> None:
    user, other = await site.person("viewer"), await site.person("owner")
    good = await site.token(user)
    assert (await site.as_(good, "GET", "/auth/me")).status == 200
    head, payload, mark = good.split(".")
    header = jwt.get_unverified_header(good)
    claims = jwt.decode(good, options={"verify_signature": False})
    key = site.people.tokens._keys[header["kid"]]

    def signed(claims_: dict[str, Any], key_: Any = key, alg: str = "HS256", **headers: Any) -> str:
        return jwt.encode(claims_, key_, algorithm=alg, headers={**header, "alg": alg, **headers})

    forged = {
        "none": f"{b64({**header, 'alg': 'none'})}.{payload}.",
        "None with the mark": f"{b64({**header, 'alg': 'None'})}.{payload}.{mark}",
        "no mark": f"{head}.{payload}.",
        "another's claims": f"{head}.{b64({**claims, 'sub': other.id})}.{mark}",
        "guessed key": signed(claims, b"k" * 32),
        "key id as key": signed(claims, header["kid"].encode() * 4),
        "another algorithm": signed(claims, key * 2, alg="HS512"),
        "unknown key": signed(claims, kid="ffffffff"),
        "a path as key": signed(claims, kid="../../dev/null"),
        "kind": signed(claims, typ="JWT"),
        "challenge": signed(claims, typ=CHALLENGE),
        "critical": signed(claims, crit=["b64"], b64=True),
        "another person": signed({**claims, "sub": other.id}),
        "another organisation": signed({**claims, "org": site.other}),
        "no session": signed({name: value for name, value in claims.items() if name != "sid"}),
        "made-up session": signed({**claims, "sid": "ses_x"}),
        "no end": signed({name: value for name, value in claims.items() if name != "exp"}),
        "endless": signed({**claims, "exp": "never"}),
        "issuer": signed({**claims, "iss": "somebody"}),
        "from the future": signed({**claims, "iat": int(site.clock()) + 3600}),
        "over": signed({**claims, "exp": int(site.clock()) - 1}),
        "numbers": signed({**claims, "sid": 7}),
        "huge": good + "A" * 5000,
        "empty parts": "eyJ..",
        "not base64": "eyJ!!.eyJ!!.x",
    }
    for name, token in forged.items():
        answer = await site.as_(token, "GET", "/auth/me")
        assert (answer.status, answer.json["code"]) == (401, "UNAUTHENTICATED"), name
    assert (await site.as_(good, "GET", "/auth/me")).status == 200


async def test_a_token_is_taken_from_where_it_belongs_and_from_nowhere_else(site: Any) -> None:
    token = await site.token(await site.person("owner"))
    for headers in ({"X-API-Key": token}, {"Cookie": f"agenticmail={token}"}, {"Cookie": f"token={token}"},
                    {"Authorization": f"Basic {token}"}, {"Authorization": token}):  # fmt: skip
        assert (await site.call("GET", "/api/users", key="", headers=headers)).status == 401, headers
    assert (await site.call("GET", f"/auth/me?access_token={token}", key="")).status == 401
    both = {"X-API-Key": site.owner, "Authorization": f"Bearer {token}"}
    assert (await site.call("GET", "/api/agents", key="", headers=both)).status == 401, "which of the two counts?"


def test_what_an_older_key_signed_is_valid_while_that_key_is_listed() -> None:
    old, new = b"o" * 32, b"n" * 32

    def clock() -> float:
        return 1_795_000_000.0

    before = Tokens(Vault([old]), clock).sign(ACCESS, "usr_a", "org_a", 600, sid="ses_a")
    rotated = Tokens(Vault([new, old]), clock)
    assert rotated.read(ACCESS, before)["sub"] == "usr_a"
    after = rotated.sign(ACCESS, "usr_b", "org_a", 600, sid="ses_b")
    assert jwt.get_unverified_header(after)["kid"] != jwt.get_unverified_header(before)["kid"]
    with pytest.raises(Unauthenticated):
        Tokens(Vault([new]), clock).read(ACCESS, before)
    with pytest.raises(Unauthenticated):
        Tokens(Vault([old]), clock).read(ACCESS, after)
    mark = Tokens(Vault([old]), clock).device("a")
    assert rotated.device_of("a", mark)


# -- refresh tokens ----------------------------------------------------------------------------------------------
async def refreshed(site: Any, token: str) -> Any:
    return await site.call("POST", "/auth/refresh", {"refresh_token": token}, key="")


async def test_a_refresh_token_that_comes_again_ends_the_whole_sign_in(site: Any) -> None:
    user = await site.person("member")
    first = await site.signed(user)
    other_device = await site.signed(user)
    second = (await refreshed(site, first["refresh_token"])).json["data"]
    third = (await refreshed(site, second["refresh_token"])).json["data"]
    assert len({first["refresh_token"], second["refresh_token"], third["refresh_token"]}) == 3
    thief = await refreshed(site, first["refresh_token"])
    assert (thief.status, thief.json["code"]) == (401, "UNAUTHENTICATED")
    for token in (first, second, third):
        assert (await site.as_(token["token"], "GET", "/auth/me")).status == 401, "access tokens die with it"
    assert (await refreshed(site, third["refresh_token"])).status == 401
    assert (await site.as_(other_device["token"], "GET", "/auth/me")).status == 200, "other devices stay"
    entry = next(item for item in await site.audit() if item.action == "auth.refresh" and item.outcome == "refused")
    assert entry.resource == user.id
    assert "before" in entry.details["error"]


async def test_of_two_refreshes_at_once_at_most_one_pair_comes_out_and_nothing_stays_open(site: Any) -> None:
    first = await site.signed(await site.person("member"))
    answers = await asyncio.gather(*(refreshed(site, first["refresh_token"]) for _ in range(5)))
    assert sum(answer.status == 200 for answer in answers) <= 1
    for answer in answers:
        if answer.status == 200:
            assert (await refreshed(site, answer.json["data"]["refresh_token"])).status == 401


@pytest.mark.parametrize(
    "made_up", ["rt_", "rt_.", "rt_a.b", "rt_a", "x", "rt_" + "a" * 500 + ".b", "rt_é.ü", "rt_a.b.c"]
)
async def test_made_up_refresh_tokens_open_nothing(site: Any, made_up: str) -> None:
    await site.signed(await site.person("member"))
    assert (await refreshed(site, made_up)).status == 401


async def test_nobody_without_the_first_part_can_end_a_session_by_refreshing(site: Any) -> None:
    signed = await site.signed(await site.person("member"))
    family, _, _ = signed["refresh_token"].partition(".")
    for token in (f"rt_{signed['session_id']}.x", f"{family[:-1]}.x", signed["token"]):
        assert (await refreshed(site, token)).status == 401
    assert (await site.as_(signed["token"], "GET", "/auth/me")).status == 200


async def test_nothing_that_opens_is_stored_as_it_is(site: Any) -> None:
    user = await site.person("member")
    signed = await site.signed(user)
    page = await site.call(
        "POST", "/auth/session", {"email": user.email, "password": PASSWORD}, key="",
        headers={"Sec-Fetch-Site": "same-origin"},
    )  # fmt: skip
    cookie = page.headers["Set-Cookie"].partition("=")[2].partition(";")[0]
    link = await site.people.tickets.issue(user, "reset", "cli")
    sessions = await site.store.find(Query(SESSIONS, "by_user", {"org": site.org, "user_id": user.id}))
    tickets = await site.people.tickets._of(user)
    text = f"{sessions.records} {tickets} {await site.people.directory.user(site.org, user.id)}"
    family, _, secret = signed["refresh_token"].removeprefix("rt_").partition(".")
    for opener in (family, secret, cookie.removeprefix("ps_"), link.token.removeprefix("lk_"), PASSWORD):
        assert opener
        assert opener not in text


async def test_tokens_and_sessions_run_out(site: Any) -> None:
    signed = await site.signed(await site.person("member"))
    site.clock.pass_(601)
    assert (await site.as_(signed["token"], "GET", "/auth/me")).status == 401
    token = signed["refresh_token"]
    for _ in range(4):  # used every 25 days it lives on, to 90 days in all
        answer = await refreshed(site, token)
        if answer.status != 200:
            break
        token = answer.json["data"]["refresh_token"]
        site.clock.pass_(25 * 86_400)
    assert (await refreshed(site, token)).status == 401
    lazy = await site.signed(await site.person("member"))
    site.clock.pass_(31 * 86_400)
    assert (await refreshed(site, lazy["refresh_token"])).status == 401
