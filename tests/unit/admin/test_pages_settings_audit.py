"""Page sessions and other sites' pages, the organisation's settings, and what stands on the audit afterwards."""

from __future__ import annotations

import csv
import io
import json
from http.cookies import SimpleCookie
from typing import Any

import pytest

from agenticmail_enterprise.catalog.errors import CrossSite
from agenticmail_enterprise.catalog.ids import new_id
from agenticmail_enterprise.catalog.records import AUDIT, COMPANIES, AuditEntry
from agenticmail_enterprise.gateway.people import totp
from agenticmail_enterprise.gateway.people.crosssite import check_same_origin

from .conftest import PASSWORD

OURS = {"Sec-Fetch-Site": "same-origin"}


async def page(site: Any, user: Any, **headers: str) -> Any:
    body = {"email": user.email, "password": PASSWORD}
    return await site.call("POST", "/auth/session", body, key="", headers={**OURS, **headers})


def cookies(answer: Any) -> SimpleCookie:
    jar: SimpleCookie = SimpleCookie()
    for value in answer.headers.getall("Set-Cookie", []):
        jar.load(value)
    return jar


def sent(answer: Any) -> dict[str, str]:
    return {"Cookie": "; ".join(f"{name}={item.value}" for name, item in cookies(answer).items())}


# -- pages -------------------------------------------------------------------------------------------------------
async def test_a_pages_cookie_is_out_of_reach_of_scripts_and_other_hosts(site: Any) -> None:
    user = await site.person("admin")
    plain = cookies(await page(site, user))
    secure = cookies(await page(site, user, **{"X-Forwarded-Proto": "https"}))
    assert set(plain) == {"agenticmail", "agenticmail-device"}
    assert set(secure) == {"__Host-agenticmail", "__Host-agenticmail-device"}
    for jar, tls in ((plain, False), (secure, True)):
        for item in jar.values():
            assert (item["httponly"], item["samesite"], item["path"], item["domain"]) == (True, "Lax", "/", "")
            assert bool(item["secure"]) == tls
    over_tls = {"Cookie": f"agenticmail={plain['agenticmail'].value}", "X-Forwarded-Proto": "https"}
    assert (await site.call("GET", "/auth/me", key="", headers=over_tls)).status == 401, (
        "a sibling host could have set it"
    )


async def test_a_session_is_new_at_each_sign_in_and_ends_at_sign_out(site: Any) -> None:
    user = await site.person("admin")
    planted = {"Cookie": "agenticmail=ps_planted-by-somebody-else"}
    first = await page(site, user, **planted)
    second = await page(site, user, **sent(first))
    values = {cookies(answer)["agenticmail"].value for answer in (first, second)}
    assert len(values) == 2
    assert "ps_planted-by-somebody-else" not in values
    assert (await site.call("GET", "/auth/me", key="", headers=sent(first))).status == 200
    out = await site.call("POST", "/auth/logout", key="", headers={**sent(first), **OURS})
    assert cookies(out)["agenticmail"]["max-age"] == "0"
    assert (await site.call("GET", "/auth/me", key="", headers=sent(first))).status == 401
    assert (await site.call("GET", "/auth/me", key="", headers=sent(second))).status == 200
    site.clock.pass_(13 * 3600)
    assert (await site.call("GET", "/auth/me", key="", headers=sent(second))).status == 401, "left alone too long"


async def test_use_keeps_a_page_session_alive_up_to_its_end(site: Any) -> None:
    user = await site.person("admin")
    cookie = sent(await page(site, user))
    for _ in range(40):
        site.clock.pass_(6 * 3600)
        assert (await site.call("GET", "/auth/me", key="", headers=cookie)).status == 200
    for _ in range(400):
        site.clock.pass_(6 * 3600)
        if (await site.call("GET", "/auth/me", key="", headers=cookie)).status == 401:
            break
    else:
        raise AssertionError("a session that never ends")


@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": ""}, False),
        ({"Sec-Fetch-Site": "nonsense"}, False),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://evil.example"}, False),
        ({"Origin": "http://{host}"}, True),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://{host}.evil.example"}, False),
        ({"Origin": "http://evil.example/http://{host}"}, False),
        ({"Origin": "http://127.0.0.1:1"}, False),
        ({"Origin": ""}, False),
        ({}, False),
        ({"Referer": "http://{host}/"}, False),
    ],
)
async def test_a_change_with_a_cookie_comes_from_our_own_pages_only(
    site: Any, headers: dict[str, str], passes: bool
) -> None:
    cookie = sent(await page(site, await site.person("admin")))
    filled = {name: value.replace("{host}", site.url.removeprefix("http://")) for name, value in headers.items()}
    answer = await site.call("POST", "/api/agents", {"name": "bot"}, key="", headers={**cookie, **filled})
    assert answer.status == (201 if passes else 403), answer.json
    if not passes:
        assert answer.json["code"] == "CROSS_SITE"
        entry = (await site.audit("-"))[-1]
        assert (entry.action, entry.outcome, entry.details["code"]) == ("agent.create", "refused", "CROSS_SITE")
    assert (await site.call("GET", "/api/agents", key="", headers={**cookie, **filled})).status == 200


def test_behind_a_proxy_that_sends_another_host_on_the_public_url_is_ours() -> None:
    public = "https://gateway.acme.test"
    sent_on = {"Host": "10.0.0.7:3000", "Origin": public, "Sec-Fetch-Site": "same-origin"}
    check_same_origin(sent_on, public)
    for headers, url in (
        (sent_on, ""), (sent_on, "https://other.acme.test"), ({**sent_on, "Sec-Fetch-Site": "same-site"}, public),
        ({**sent_on, "Origin": f"{public}.evil.example"}, public), ({**sent_on, "Origin": "http://gateway.acme.test"}, public),
    ):  # fmt: skip
        with pytest.raises(CrossSite):
            check_same_origin(headers, url)


async def test_another_sites_page_cannot_sign_a_browser_in_either(site: Any) -> None:
    user = await site.person("member")
    for path, body in (("/auth/session", {"email": user.email, "password": PASSWORD}),
                       ("/auth/session/link", {"token": "lk_x"}),
                       ("/auth/session/second-factor", {"challenge": "x", "code": "1"})):  # fmt: skip
        for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}, {}):
            answer = await site.call("POST", path, body, key="", headers=headers)
            assert (answer.status, answer.json["code"]) == (403, "CROSS_SITE")
            assert "Set-Cookie" not in answer.headers


async def test_a_header_needs_no_such_proof_because_no_browser_adds_it_by_itself(site: Any) -> None:
    token = await site.token(await site.person("admin"))
    evil = {"Sec-Fetch-Site": "cross-site", "Cookie": "agenticmail=ps_x"}
    assert (await site.as_(token, "POST", "/api/agents", {"name": "bot"}, headers=evil)).status == 201


@pytest.mark.parametrize("cookie", ["agenticmail", "agenticmail=", "agenticmail=ps_", "agenticmail=ps_" + "x" * 5000,
                                    'agenticmail="ps_\\"', "agenticmail=é", "=;=;,", "agenticmail=ps_x; agenticmail=ps_y"])  # fmt: skip
async def test_odd_cookies_are_nobody(site: Any, cookie: str) -> None:
    assert (await site.call("GET", "/auth/me", key="", headers={"Cookie": cookie})).status == 401


async def test_people_see_and_end_their_own_sessions_only(site: Any) -> None:
    one, two = await site.person("owner"), await site.person("member")
    mine, other = await site.signed(one), await site.signed(two)
    listed = (await site.as_(mine["token"], "GET", "/auth/sessions")).json["data"]
    assert [(item["id"], item["current"], item["method"]) for item in listed] == [
        (mine["session_id"], True, "password")
    ]
    assert (await site.as_(mine["token"], "DELETE", f"/auth/sessions/{other['session_id']}")).status == 404
    assert (await site.as_(other["token"], "GET", "/auth/me")).status == 200
    assert (await site.as_(mine["token"], "DELETE", f"/auth/sessions/{mine['session_id']}")).status == 204
    assert (await site.as_(mine["token"], "GET", "/auth/me")).status == 401


async def test_no_more_sessions_than_a_person_can_look_through(site: Any) -> None:
    user = await site.person("member")
    first = await site.signed(user)
    for _ in range(55):
        last = await site.signed(user)
    assert len(await site.people.directory.sessions(user)) == 50
    assert (await site.as_(first["token"], "GET", "/auth/me")).status == 401
    assert (await site.as_(last["token"], "GET", "/auth/me")).status == 200


# -- settings ----------------------------------------------------------------------------------------------------
async def test_secrets_are_written_and_never_read(site: Any) -> None:
    async def put(**body: Any) -> dict[str, Any]:
        answer = await site.call("PUT", "/api/settings", {"name": "Acme", **body})
        assert answer.status == 200, answer.json
        assert b"hunter2" not in answer.body
        return answer.json["data"]["secrets"]

    async def stored() -> str:
        company = await site.people.companies.company(site.org)
        return site.people.companies.secret(company, "mail_password")

    assert (await site.call("GET", "/api/settings")).json["data"]["secrets"] == {"mail_password": None}
    assert await put(secrets={"mail_password": "hunter2-hunter2"}) == {"mail_password": "set"}
    assert await stored() == "hunter2-hunter2"
    assert await put() == {"mail_password": "set"}, "left out it stays"
    assert await put(secrets={"mail_password": "set"}) == {"mail_password": "set"}
    assert await stored() == "hunter2-hunter2"
    assert "hunter2" not in str(await site.store.get(COMPANIES, site.org, "company"))
    assert "hunter2" not in str(await site.audit())
    assert await put(secrets={"mail_password": None}) == {"mail_password": None}


async def test_a_patch_of_the_settings_keeps_and_removes_what_it_says(site: Any) -> None:
    await site.call("PUT", "/api/settings", {"name": "Acme", "secrets": {"mail_password": "hunter2-hunter2"}})
    assert (await site.call("PATCH", "/api/settings", {"domain": "acme.test"})).status == 428
    any_ = {"If-Match": "*"}
    kept = await site.call("PATCH", "/api/settings", {"domain": "acme.test"}, headers=any_)
    assert (kept.json["data"]["name"], kept.json["data"]["secrets"]) == ("Acme", {"mail_password": "set"})
    gone = await site.call("PATCH", "/api/settings", {"secrets": {"mail_password": None}}, headers=any_)
    assert (gone.json["data"]["domain"], gone.json["data"]["secrets"]) == ("acme.test", {"mail_password": None})


async def test_a_dry_run_of_a_setting_shows_no_secret_and_one_of_a_person_removes_nobody(site: Any) -> None:
    body = {"name": "Acme", "secrets": {"mail_password": "hunter2-hunter2"}}
    tried = await site.call("PUT", "/api/settings", body, query={"dry_run": "true"})
    assert (tried.status, b"hunter2" in tried.body) == (200, False)
    await site.person("owner")
    user = await site.person("admin")
    token = await site.token(user)
    assert (await site.call("DELETE", f"/api/users/{user.id}", query={"dry_run": "true"})).status == 200
    assert (await site.as_(token, "GET", "/auth/me")).status == 200


async def test_what_signs_people_in_is_neither_tried_nor_given_again(site: Any) -> None:
    user = await site.person("member")
    body, again = {"email": user.email, "password": PASSWORD}, {"Idempotency-Key": "the-same-for-both"}
    one = await site.call("POST", "/auth/login", body, key="", headers=again)
    two = await site.call("POST", "/auth/login", body, key="", headers=again)
    assert one.json["data"]["session_id"] != two.json["data"]["session_id"]
    assert "Idempotent-Replayed" not in two.headers
    assert (await site.call("POST", "/auth/login", body, key="", query={"dry_run": "true"})).status == 400
    assert len(await site.people.directory.sessions(user)) == 2


async def test_a_link_is_not_given_again(site: Any) -> None:
    again = {"Idempotency-Key": "add-nia"}
    bodies = [await site.call("POST", "/api/users", {"email": "nia@acme.test"}, headers=again) for _ in range(2)]
    assert bodies[0].json["data"]["link"]["token"].startswith("lk_")
    assert (bodies[1].status, bodies[1].json["data"]["link"]) == (201, None)


async def test_settings_that_make_no_sense_are_named_all_of_them(site: Any) -> None:
    body = {
        "name": "Acme",
        "timezone": "Mars/Olympus",
        "contact": "nobody",
        "mail_from": "x",
        "secrets": {"other": "x"},
    }
    answer = await site.call("PUT", "/api/settings", body)
    assert set(answer.fields) == {"/timezone", "/contact", "/mail_from", "/secrets/other"}
    assert (await site.call("PUT", "/api/settings", {"name": "Acme", "domain": "not a domain"})).status == 422
    assert (await site.call("GET", "/api/settings")).json["data"]["timezone"] == "UTC"
    for zone in ("../../etc/passwd", "/etc/localtime", "\x7f", ""):
        assert (await site.call("PUT", "/api/settings", {"name": "Acme", "timezone": zone})).status == 422


async def test_settings_are_one_organisations_own_and_changed_by_version(site: Any) -> None:
    tag = (await site.call("GET", "/api/settings")).headers["ETag"]
    assert (await site.call("PUT", "/api/settings", {"name": "Acme Two"}, headers={"If-Match": tag})).status == 200
    assert (await site.call("PUT", "/api/settings", {"name": "Acme Three"}, headers={"If-Match": tag})).status == 412
    assert (await site.call("GET", "/api/settings", key=site.stranger)).json["data"]["name"] == "Other"
    (entry,) = [item for item in await site.audit() if item.outcome == "ok"]
    assert entry.details["name"] == "Acme -> Acme Two"


async def test_where_a_second_factor_is_asked_for_nothing_else_is_open_without_one(site: Any) -> None:
    boss, user = await site.token(await site.person("owner")), await site.person("admin")
    token = await site.token(user)
    changed = await site.as_(boss, "PUT", "/api/settings", {"name": "Acme", "require_second_factor": True})
    assert changed.status == 200
    for method, path in (("GET", "/api/users"), ("GET", "/api/agents"), ("POST", "/api/agents")):
        answer = await site.as_(token, method, path, {"name": "bot"} if method == "POST" else None)
        assert (answer.status, answer.json["code"]) == (403, "SECOND_FACTOR_MISSING")
    me = (await site.as_(token, "GET", "/auth/me")).json["data"]
    assert (me["limited"], me["scopes"]) == (True, [])
    secret = (await site.as_(token, "POST", "/auth/2fa/setup", {"password": PASSWORD})).json["data"]["secret"]
    now = totp.code_at(secret, totp.step_of(site.clock()))
    assert (await site.as_(token, "POST", "/auth/2fa/confirm", {"code": now})).status == 200
    assert (await site.as_(token, "GET", "/api/users")).status == 200
    assert (await site.call("GET", "/api/users")).status == 200, "keys have no second factor"


async def test_the_organisation_says_how_long_people_stay_signed_in(site: Any) -> None:
    await site.call("PUT", "/api/settings", {"name": "Acme", "session_hours": 2})
    signed = await site.signed(await site.person("member"))
    site.clock.pass_(3600)
    again = await site.call("POST", "/auth/refresh", {"refresh_token": signed["refresh_token"]}, key="")
    assert again.status == 200
    site.clock.pass_(3700)
    token = again.json["data"]["refresh_token"]
    assert (await site.call("POST", "/auth/refresh", {"refresh_token": token}, key="")).status == 401


async def test_the_overview_counts_this_organisation_only(site: Any) -> None:
    await site.furnish()
    data = (await site.call("GET", "/api/stats")).json["data"]
    assert (data["agents"], data["users"], data["users_by_role"]) == (
        1,
        2,
        {"viewer": 0, "member": 1, "admin": 0, "owner": 1},
    )
    other = (await site.call("GET", "/api/stats", key=site.stranger)).json["data"]
    assert (other["agents"], other["users"], other["calls"], other["audit_entries"]) == (0, 0, 0, 0)


# -- the audit ---------------------------------------------------------------------------------------------------
async def test_sign_ins_and_refused_ones_are_on_the_audit_of_the_persons_organisation(site: Any) -> None:
    user = await site.person("member")
    headers = {"X-Request-Id": "sign-in-0001"}
    body = {"email": user.email, "password": "wrong password 1"}
    await site.call("POST", "/auth/login", body, key="", headers=headers)
    await site.call("POST", "/auth/login", {**body, "password": PASSWORD}, key="", headers=headers)
    await site.call("POST", "/auth/login", {**body, "email": "secret-typed-in-the-wrong-field"}, key="")
    refused, ok = await site.audit()
    assert (refused.action, refused.outcome, refused.actor, refused.resource) == (
        "auth.login",
        "refused",
        "anonymous",
        user.id,
    )
    assert (ok.action, ok.outcome, ok.actor, ok.resource) == ("auth.login", "ok", user.id, user.id)
    assert {entry.ip for entry in (refused, ok)} == {"127.0.0.1"}
    assert {entry.request_id for entry in (refused, ok)} == {"sign-in-0001"}
    assert ok.details["method"] == "password"
    assert "secret-typed" not in str(await site.audit("-"))


async def test_filters_narrow_together_and_cursors_lead_through_them(site: Any) -> None:
    entries = [
        AuditEntry(
            org=site.org, id=new_id("audit"), at=1_795_000_000_000 + number, actor=f"usr_{number % 3}",
            action=("agent.create", "agent.delete", "key.create", "user.create")[number % 4], resource=f"r{number % 5}",
            outcome="refused" if number % 2 else "ok", ip=f"192.0.2.{number % 2}", request_id=f"req_{number}",
        )
        for number in range(300)
    ]  # fmt: skip
    await site.store.append(AUDIT, entries)

    async def walk(limit: str, **query: str) -> list[str]:
        seen: list[str] = []
        cursor: str | None = ""
        while cursor is not None:
            asked = {**query, "limit": limit, **({"cursor": cursor} if cursor else {})}
            answer = (await site.call("GET", "/api/audit", query=asked)).json
            assert len(answer["data"]) <= int(limit)
            seen += [item["id"] for item in answer["data"]]
            cursor = answer["meta"]["next_cursor"]
        return seen

    def wanted(**query: str) -> list[str]:
        def fits(entry: AuditEntry) -> bool:
            return all(
                getattr(entry, name).startswith(value[:-1]) if value.endswith("*") else getattr(entry, name) == value
                for name, value in query.items()
            )

        return [entry.id for entry in reversed(entries) if fits(entry)]

    for query in ({}, {"actor": "usr_1"}, {"actor": "usr_1", "action": "agent.*"}, {"outcome": "refused", "resource": "r2"},
                  {"ip": "192.0.2.1", "actor": "usr_0", "outcome": "ok"}, {"request_id": "req_17"}, {"action": "agent.*"},
                  {"ip": "203.0.113.1"}):  # fmt: skip
        for limit in ("7", "200"):
            assert await walk(limit, **query) == wanted(**query), query
    first = (await site.call("GET", "/api/audit?actor=usr_1&action=agent.*&limit=5")).json["meta"]["next_cursor"]
    other = {"actor": "usr_1", "action": "key.*", "limit": "5", "cursor": first}
    assert (await site.call("GET", "/api/audit", query=other)).json["code"] == "CURSOR_INVALID"


async def test_an_export_is_all_that_the_filters_leave_in_each_format(site: Any) -> None:
    entries = [
        AuditEntry(org=site.org, id=new_id("audit"), at=1_795_000_000_000, actor="usr_1", action="agent.create",
                   resource=resource, details={"name": 'a "quoted", name\nwith a line'})
        for resource in ("=HYPERLINK(1)", "+1", "-1", "@x", "plain", "\tx")
    ]  # fmt: skip
    await site.store.append(AUDIT, entries)
    await site.store.append(AUDIT, [AuditEntry(org=site.other, id=new_id("audit"), actor="usr_1", action="secret")])
    texts = {}
    for kind in ("csv", "json", "ndjson"):
        answer = await site.call("GET", f"/api/audit/export?format={kind}&actor=usr_1&order=oldest")
        assert answer.status == 200
        assert answer.headers["Content-Disposition"].endswith(f'.{kind}"')
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"
        texts[kind] = answer.body.decode()
    rows = list(csv.DictReader(io.StringIO(texts["csv"])))
    assert [row["id"] for row in rows] == [entry.id for entry in entries]
    assert [row["resource"][0] for row in rows] == ["'", "'", "'", "'", "p", "'"]
    assert json.loads(rows[0]["details"]) == entries[0].details
    whole = json.loads(texts["json"])
    assert [item["resource"] for item in whole] == [entry.resource for entry in entries]
    assert [json.loads(line) for line in texts["ndjson"].splitlines()] == whole
    assert json.loads((await site.call("GET", "/api/audit/export?format=json&actor=nobody")).body) == []
    mine = [entry for entry in await site.audit() if entry.action == "audit.export"]
    assert len(mine) == 4
    assert mine[0].details == {"format": "csv", "actor": "usr_1"}


async def test_an_export_longer_than_a_page_is_whole(site: Any) -> None:
    for _ in range(3):
        await site.store.append(
            AUDIT, [AuditEntry(org=site.org, id=new_id("audit"), actor="usr_9") for _ in range(400)]
        )
    answer = await site.call("GET", "/api/audit/export?format=json&actor=usr_9")
    assert len(json.loads(answer.body)) == 1200
