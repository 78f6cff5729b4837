"""People as somebody tries who wants more than they have: climbing, keeping what was taken away, removing others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from argon2 import PasswordHasher

from agenticmail_enterprise.catalog.records import KEYS, USERS
from agenticmail_enterprise.catalog.store import Query, Replace
from agenticmail_enterprise.gateway.keys import KeySpec
from agenticmail_enterprise.gateway.passwords import Passwords
from agenticmail_enterprise.gateway.people import totp
from agenticmail_enterprise.gateway.scopes import ROLE_SCOPES

from .conftest import PASSWORD

ROLES = ("viewer", "member", "admin", "owner")
NEW = "another good password"


async def owners(site: Any) -> list[str]:
    page = await site.store.find(Query(USERS, "by_role", {"org": site.org, "role": "owner"}))
    return [user.id for user in page.records if user.status == "active"]


# -- climbing ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("role", ROLES)
async def test_nobody_changes_their_own_role_or_status_or_removes_themselves(site: Any, role: str) -> None:
    await site.person("owner")
    user = await site.person(role)
    token = await site.token(user)
    for body in (
        *({"name": "x", "role": other} for other in ROLES if other != role),
        {"name": "x", "status": "suspended"},
    ):
        answer = await site.as_(token, "PUT", f"/api/users/{user.id}", body)
        assert (answer.status, answer.json["code"]) == (403, "FORBIDDEN"), body
    assert (await site.as_(token, "DELETE", f"/api/users/{user.id}")).status == 403
    stored = await site.people.directory.user(site.org, user.id)
    assert (stored.role, stored.status, stored.name) == (role, "active", "")


async def test_the_way_to_say_ones_own_name_takes_nothing_else(site: Any) -> None:
    user = await site.person("viewer")
    token = await site.token(user)
    for extra in ("role", "status", "org", "id", "email", "password_hash", "version", "scopes"):
        answer = await site.as_(token, "PUT", "/auth/me", {"name": "x", extra: "owner"})
        assert (answer.status, answer.fields) == (422, {f"/{extra}": "unknown_field"})
    assert (await site.as_(token, "PUT", "/auth/me", {"name": "Vera"})).json["data"]["user"]["role"] == "viewer"


@pytest.mark.parametrize("target", ROLES)
async def test_admins_reach_up_to_admins_and_never_owners(site: Any, target: str) -> None:
    token = await site.token(await site.person("admin"))
    await site.person("owner")
    user = await site.person(target)
    reach = target != "owner"
    below = target in {"viewer", "member"}
    allowed = {
        "add": (await site.as_(token, "POST", "/api/users", {"email": f"new-{target}@acme.test", "role": target})).status == 201,
        "rename": (await site.as_(token, "PUT", f"/api/users/{user.id}", {"name": "Somebody"})).status == 200,
        "promote to owner": (await site.as_(token, "PUT", f"/api/users/{user.id}", {"name": "", "role": "owner"})).status == 200,
        "link": (await site.as_(token, "POST", f"/api/users/{user.id}/link")).status == 201,
        "2fa": (await site.as_(token, "DELETE", f"/api/users/{user.id}/2fa")).status == 204,
        "sign out": (await site.as_(token, "POST", f"/api/users/{user.id}/sign-out")).status == 200,
        "suspend": (await site.as_(token, "PUT", f"/api/users/{user.id}", {"name": "", "status": "suspended"})).status == 200,
        "remove": (await site.as_(token, "DELETE", f"/api/users/{user.id}")).status == 204,
    }  # fmt: skip
    assert allowed == {
        "add": reach, "rename": reach, "promote to owner": False, "link": below, "2fa": below, "sign out": reach,
        "suspend": reach, "remove": reach,
    }  # fmt: skip


async def test_a_key_gives_no_role_beyond_its_own_scopes(site: Any) -> None:
    """Else a key with users:write would make itself an admin, and sign in as them."""
    await site.person("owner")
    only = await site.key("users:write", "users:read")
    for role in ROLES:
        answer = await site.call(
            "POST", "/api/users", {"email": f"{role}@x.test", "role": role, "password": PASSWORD}, key=only
        )
        assert (answer.status, answer.json["code"]) == (403, "FORBIDDEN")
    like_admin = await site.key(*ROLE_SCOPES["admin"])
    made = await site.call("POST", "/api/users", {"email": "a@x.test", "role": "admin"}, key=like_admin)
    assert made.status == 201
    assert (await site.call("POST", "/api/users", {"email": "o@x.test", "role": "owner"}, key=like_admin)).status == 403
    assert (await site.call("POST", f"/api/users/{made.json['data']['id']}/link", key=like_admin)).status == 403
    assert (await site.call("POST", "/api/users", {"email": "o@x.test", "role": "owner"})).status == 201, (
        "the key with *"
    )


async def test_people_make_no_keys_beyond_themselves(site: Any) -> None:
    admin = await site.token(await site.person("admin"))
    for scopes in (["*"], ["keys:create"], ["upstreams:stdio"], ["agents:read", "*"]):
        answer = await site.as_(admin, "POST", "/api/keys", {"kind": "program", "scopes": scopes})
        assert answer.status == 403, scopes
    assert (await site.as_(admin, "POST", "/api/keys", {"kind": "program", "scopes": ["agents:read"]})).status == 201
    agent = (await site.as_(admin, "POST", "/api/agents", {"name": "bot"})).json["data"]
    made = await site.as_(admin, "POST", "/api/keys", {"kind": "agent", "agent_id": agent["id"]})
    assert (made.status, made.json["data"]["scopes"]) == (201, ["gateway:call"])
    assert made.json["data"]["created_by"].startswith("usr_")
    member = await site.token(await site.person("member"))
    assert (await site.as_(member, "POST", "/api/keys", {"kind": "agent", "agent_id": agent["id"]})).status == 403


# -- keeping what was taken away ---------------------------------------------------------------------------------
async def test_who_is_demoted_suspended_or_removed_loses_access_at_the_next_request(site: Any) -> None:
    boss = await site.token(await site.person("owner"))
    for change, after in (
        (("PUT", {"name": "", "role": "viewer"}), (403, 200)),
        (("PUT", {"name": "", "status": "suspended"}), (401, 401)),
        (("DELETE", None), (401, 401)),
    ):  # fmt: skip
        user = await site.person("admin")
        signed = await site.signed(user)
        page = await site.call(
            "POST", "/auth/session", {"email": user.email, "password": PASSWORD}, key="",
            headers={"Sec-Fetch-Site": "same-origin"},
        )  # fmt: skip
        cookie = {"Cookie": page.headers["Set-Cookie"].partition(";")[0]}
        assert (await site.as_(signed["token"], "GET", "/api/users")).status == 200
        assert (await site.call("GET", "/api/users", key="", headers=cookie)).status == 200
        method, body = change
        assert (await site.as_(boss, method, f"/api/users/{user.id}", body)).status in {200, 204}
        assert (await site.as_(signed["token"], "GET", "/api/users")).status == after[0]
        assert (await site.as_(signed["token"], "GET", "/api/agents")).status == after[1]
        assert (await site.call("GET", "/api/users", key="", headers=cookie)).status == after[0]
        refreshed = await site.call("POST", "/auth/refresh", {"refresh_token": signed["refresh_token"]}, key="")
        assert refreshed.status == after[1]
        site.ticks.pass_(10_000)


async def test_who_comes_back_does_not_come_back_signed_in(site: Any) -> None:
    boss = await site.token(await site.person("owner"))
    user = await site.person("admin")
    token = await site.token(user)
    link = await site.people.tickets.issue(user, "reset", "cli")
    for status in ("suspended", "active"):
        assert (await site.as_(boss, "PUT", f"/api/users/{user.id}", {"name": "", "status": status})).status == 200
    assert (await site.as_(token, "GET", "/auth/me")).status == 401
    body = {"token": link.token, "password": NEW}
    assert (await site.call("POST", "/auth/reset-password", body, key="")).status == 410


@pytest.mark.parametrize("how", ["demoted", "suspended", "removed"])
async def test_keys_that_somebody_made_do_not_outlive_their_right_to_make_them(site: Any, how: str) -> None:
    boss = await site.token(await site.person("owner"))
    user = await site.person("admin")
    token = await site.token(user)
    agent = (await site.as_(token, "POST", "/api/agents", {"name": "bot"})).json["data"]

    async def made(**body: Any) -> dict[str, Any]:
        return (await site.as_(token, "POST", "/api/keys", body)).json["data"]

    wide = await made(kind="program", scopes=["users:write", "agents:read"])
    narrow = await made(kind="program", scopes=["agents:read"])
    agents = await made(kind="agent", agent_id=agent["id"])
    others = await site.key("users:read")
    match how:
        case "demoted":
            await site.as_(boss, "PUT", f"/api/users/{user.id}", {"name": "", "role": "viewer"})
        case "suspended":
            await site.as_(boss, "PUT", f"/api/users/{user.id}", {"name": "", "status": "suspended"})
        case _:
            await site.as_(boss, "DELETE", f"/api/users/{user.id}")
    live = {
        key.id: not key.revoked_at for key in (await site.store.find(Query(KEYS, "by_org", {"org": site.org}))).records
    }
    assert (live[wide["id"]], live[narrow["id"]], live[agents["id"]]) == (False, how == "demoted", True)
    assert (await site.call("GET", "/api/agents", key=wide["key"])).status == 401
    assert (await site.call("GET", "/api/users", key=others)).status == 200


async def test_more_keys_than_fit_one_batch_are_all_revoked(site: Any) -> None:
    boss, user = await site.token(await site.person("owner")), await site.person("admin")
    for number in range(230):
        spec = KeySpec(kind="program", name=str(number), scopes=("users:read",))
        await site.accounts.mint(site.org, spec, created_by=user.id)
    assert (await site.as_(boss, "DELETE", f"/api/users/{user.id}")).status == 204
    page = await site.store.find(Query(KEYS, "by_creator", {"org": site.org, "created_by": user.id}, limit=500))
    assert len(page.records) == 230
    assert all(key.revoked_at for key in page.records)


# -- the last owner ----------------------------------------------------------------------------------------------
async def test_the_last_owner_stays_whoever_asks(site: Any) -> None:
    owner = await site.person("owner")
    for method, body in (
        ("DELETE", None),
        ("PUT", {"name": "", "role": "admin"}),
        ("PUT", {"name": "", "status": "suspended"}),
    ):
        answer = await site.call(method, f"/api/users/{owner.id}", body)  # the key with *
        assert (answer.status, answer.json["code"]) == (409, "LAST_OWNER")
    asleep = await site.person("owner")
    assert (await site.call("PUT", f"/api/users/{asleep.id}", {"name": "", "status": "suspended"})).status == 200
    assert (await site.call("DELETE", f"/api/users/{owner.id}")).status == 409, (
        "one that is suspended is no owner to rely on"
    )
    assert await owners(site) == [owner.id]


async def test_two_owners_who_remove_each_other_at_the_same_time_do_not_both_succeed(site: Any) -> None:
    for method, body in (
        ("DELETE", None),
        ("PUT", {"name": "", "role": "viewer"}),
        ("PUT", {"name": "", "status": "suspended"}),
    ):
        one, two = await site.person("owner"), await site.person("owner")
        for left in await owners(site):
            if left not in {one.id, two.id}:
                assert (await site.call("DELETE", f"/api/users/{left}")).status == 204
        tokens = await site.token(one), await site.token(two)
        answers = await asyncio.gather(
            site.as_(tokens[0], method, f"/api/users/{two.id}", body),
            site.as_(tokens[1], method, f"/api/users/{one.id}", body),
        )
        assert len(await owners(site)) == 1, [answer.json for answer in answers]
        assert sorted(answer.status < 300 for answer in answers) == [False, True]


# -- one-time links ----------------------------------------------------------------------------------------------
async def test_a_link_works_once_for_one_person_and_ends_with_the_next(site: Any) -> None:
    boss, user = await site.token(await site.person("owner")), await site.person("member")
    signed = await site.token(user)
    first = (await site.as_(boss, "POST", f"/api/users/{user.id}/link")).json["data"]
    second = (await site.as_(boss, "POST", f"/api/users/{user.id}/link")).json["data"]

    async def reset(token: str, password: str = NEW) -> Any:
        site.ticks.pass_(3600)
        return await site.call("POST", "/auth/reset-password", {"token": token, "password": password}, key="")

    assert (await reset(first["token"])).json["code"] == "LINK_INVALID"
    weak = await reset(second["token"], "short")
    assert (weak.status, weak.fields) == (422, {"/password": "too_short"})
    assert (await reset(second["token"], f"x{user.email}x")).fields == {"/password": "too_common"}
    done = await asyncio.gather(*(reset(second["token"], f"{NEW} {number}") for number in range(4)))
    assert sorted(answer.status for answer in done) == [200, 410, 410, 410]
    winner = next(number for number, answer in enumerate(done) if answer.status == 200)
    assert "Set-Cookie" not in done[winner].headers
    assert "token" not in done[winner].json["data"], "it signs nobody in"
    assert (await site.as_(signed, "GET", "/auth/me")).status == 401, "whoever was signed in is out"
    statuses = [
        (await site.call("POST", "/auth/login", {"email": user.email, "password": password}, key="")).status
        for password in (PASSWORD, f"{NEW} {winner}")
    ]
    assert statuses == [401, 200]


async def test_links_are_not_interchangeable_and_run_out(site: Any) -> None:
    user = await site.person("member")
    tickets = site.people.tickets
    sign_in, reset = await tickets.issue(user, "sign_in", "cli"), await tickets.issue(user, "reset", "cli")
    body = {"token": sign_in.token, "password": NEW}
    assert (await site.call("POST", "/auth/reset-password", body, key="")).status == 410
    assert (await site.call("POST", "/auth/login/link", {"token": reset.token}, key="")).status == 410
    site.clock.pass_(15 * 60 + 1)
    assert (await site.call("POST", "/auth/login/link", {"token": sign_in.token}, key="")).status == 410
    site.clock.pass_(45 * 60)
    body = {"token": reset.token, "password": NEW}
    assert (await site.call("POST", "/auth/reset-password", body, key="")).status == 410


async def test_a_link_does_not_stand_for_the_second_factor(site: Any) -> None:
    user = await site.person("member")
    secret = totp.new_secret()
    await site.people.factors.keep_pending(user, secret)
    await site.people.factors.confirm(user, totp.code_at(secret, totp.step_of(site.clock())))
    site.clock.pass_(60)
    link = await site.people.tickets.issue(user, "sign_in", "cli")
    answer = await site.call("POST", "/auth/login/link", {"token": link.token}, key="")
    assert (answer.status, answer.json["code"]) == (401, "SECOND_FACTOR_REQUIRED")
    assert (await site.call("POST", "/auth/login/link", {"token": link.token}, key="")).status == 410
    body = {"challenge": answer.json["details"]["challenge"], "code": totp.code_at(secret, totp.step_of(site.clock()))}
    done = await site.call("POST", "/auth/login/second-factor", body, key="")
    assert done.status == 200


async def test_an_invitation_lets_somebody_set_their_first_password(site: Any) -> None:
    made = await site.call("POST", "/api/users", {"email": "  Nia@Acme.TEST ", "role": "member"})
    data = made.json["data"]
    assert (data["email"], data["has_password"], data["link"]["purpose"]) == ("nia@acme.test", False, "invite")
    assert data["link"]["url"].endswith(data["link"]["token"])
    body = {"token": data["link"]["token"], "password": NEW}
    assert (await site.call("POST", "/auth/reset-password", body, key="")).status == 200
    signed = await site.call("POST", "/auth/login", {"email": "NIA@acme.test", "password": NEW}, key="")
    assert signed.json["data"]["user"]["role"] == "member"
    again = await site.call("POST", "/api/users", {"email": "nia@acme.test"})
    assert (again.status, again.json["code"]) == (409, "CONFLICT")


async def test_a_new_password_ends_every_other_sign_in(site: Any) -> None:
    user = await site.person("member")
    here, there = await site.token(user), await site.token(user)
    link = await site.people.tickets.issue(user, "reset", "cli")
    body = {"current_password": PASSWORD, "new_password": PASSWORD}
    assert (await site.as_(here, "POST", "/auth/password", body)).fields == {"/new_password": "unchanged"}
    done = await site.as_(here, "POST", "/auth/password", {**body, "new_password": NEW})
    assert done.json["data"] == {"sessions_ended": 1}
    assert (await site.as_(here, "GET", "/auth/me")).status == 200
    assert (await site.as_(there, "GET", "/auth/me")).status == 401
    body = {"token": link.token, "password": NEW}
    assert (await site.call("POST", "/auth/reset-password", body, key="")).status == 410


async def test_hashes_of_yesterdays_costs_are_made_anew_at_the_next_sign_in(site: Any) -> None:
    user = await site.person("member")
    outdated = Passwords(PasswordHasher(time_cost=2, memory_cost=16, parallelism=1))
    user.password_hash = await outdated.hash(PASSWORD)
    await site.store.commit(Replace(USERS, user))
    body = {"email": user.email, "password": PASSWORD}
    answers = await asyncio.gather(*(site.call("POST", "/auth/login", body, key="") for _ in range(3)))
    assert [answer.status for answer in answers] == [200, 200, 200]
    stored = await site.people.directory.user(site.org, user.id)
    assert stored.password_hash != user.password_hash
    assert not site.people.sign_in._passwords.is_outdated(stored.password_hash)


async def test_a_sign_in_that_a_new_password_overtakes_opens_nothing(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await site.person("member")
    sign_in = site.people.sign_in
    link = await site.people.tickets.issue(user, "reset", "cli")
    make_room = sign_in._make_room

    async def overtaken(who: Any) -> None:
        await make_room(who)
        body = {"token": link.token, "password": NEW}
        assert (await site.call("POST", "/auth/reset-password", body, key="")).status == 200

    monkeypatch.setattr(sign_in, "_make_room", overtaken)
    answer = await site.call("POST", "/auth/login", {"email": user.email, "password": PASSWORD}, key="")
    assert (answer.status, answer.json["code"]) == (401, "SIGN_IN_FAILED")
    assert await site.people.directory.sessions(user) == []


async def test_what_is_changed_by_version_is_changed_once(site: Any) -> None:
    user = await site.person("member")
    path = f"/api/users/{user.id}"
    tag = (await site.call("GET", path)).headers["ETag"]
    assert (await site.call("PUT", path, {"name": "A"}, headers={"If-Match": tag})).status == 200
    assert (await site.call("PUT", path, {"name": "B"}, headers={"If-Match": tag})).status == 412
    assert (await site.call("DELETE", path, headers={"If-Match": tag})).status == 412
    assert (await site.call("GET", path)).json["data"]["role"] == "member", "a role left out stays"
