"""Upstreams: what may be said about them, and that their credentials go in, stay sealed and go nowhere else."""

from __future__ import annotations

from typing import Any

import pytest

from agenticmail_enterprise.catalog.errors import Conflict, NotFound, SecretError, Stale, ValidationFailed
from agenticmail_enterprise.catalog.records import TOOLS, UPSTREAMS
from agenticmail_enterprise.catalog.store import Query
from agenticmail_enterprise.gateway.registry import Registry
from agenticmail_enterprise.gateway.upstream_spec import UpstreamSpec
from agenticmail_enterprise.gateway.vault import Vault

URL = "https://mcp.example.com/mcp"


def http(**fields: Any) -> UpstreamSpec:
    return UpstreamSpec(**{"name": "mail", "url": URL, **fields})


def stdio(**fields: Any) -> UpstreamSpec:
    return UpstreamSpec(**{"name": "files", "kind": "mcp_stdio", "command": ("server", "--flag"), **fields})


async def faults(world: Any, spec: UpstreamSpec) -> dict[str, str]:
    with pytest.raises(ValidationFailed) as caught:
        await world.registry.create(world.org, spec)
    return {field["path"]: field["code"] for field in caught.value.details["fields"]}


# -- secrets -----------------------------------------------------------------------------------------------------
async def test_a_secret_is_sealed_in_the_store_and_opens_for_the_connection_alone(world: Any) -> None:
    made = await world.registry.create(world.org, http(secrets={"Authorization": "Bearer top-secret"}))
    stored = await world.store.get(UPSTREAMS, world.org, made.id)
    assert "top-secret" not in str(stored)
    assert world.registry.open_secrets(stored) == {"Authorization": "Bearer top-secret"}


async def test_a_sealed_secret_moved_to_another_upstream_or_tenant_does_not_open(world: Any) -> None:
    one = await world.registry.create(world.org, http(secrets={"Authorization": "one"}))
    two = await world.registry.create(world.org, http(name="other"))
    two.secrets = one.secrets
    with pytest.raises(SecretError):
        world.registry.open_secrets(two)
    one.org = world.other
    with pytest.raises(SecretError):
        world.registry.open_secrets(one)


async def test_secrets_left_out_stay_set_keeps_one_and_the_others_go(world: Any) -> None:
    made = await world.registry.create(world.org, http(secrets={"Authorization": "one", "X-Key": "two"}))
    same = await world.registry.replace(world.org, made.id, http(timeout_ms=500))
    assert (world.registry.open_secrets(same), same.timeout_ms) == ({"Authorization": "one", "X-Key": "two"}, 500)
    fewer = await world.registry.replace(world.org, made.id, http(secrets={"Authorization": "set", "X-New": "three"}))
    assert world.registry.open_secrets(fewer) == {"Authorization": "one", "X-New": "three"}
    none = await world.registry.replace(world.org, made.id, http(secrets={}))
    assert none.secrets == {}


async def test_the_word_set_is_never_sealed_as_a_credential(world: Any) -> None:
    assert await faults(world, http(secrets={"Authorization": "set"})) == {"/secrets/Authorization": "not_stored"}
    made = await world.registry.create(world.org, http())
    with pytest.raises(ValidationFailed) as caught:
        await world.registry.replace(world.org, made.id, http(secrets={"X-Key": "set"}))
    assert caught.value.details["fields"][0]["path"] == "/secrets/X-Key"


@pytest.mark.parametrize(
    "moved",
    [
        "http://mcp.example.com/mcp",
        "https://evil.example.net/mcp",
        "https://mcp.example.com:8443/mcp",
        "https://example.com/mcp",
    ],
)
async def test_credentials_do_not_follow_an_upstream_to_another_place(world: Any, moved: str) -> None:
    made = await world.registry.create(world.org, http(secrets={"Authorization": "one"}))
    for secrets in ({}, {"secrets": {"Authorization": "set"}}):
        with pytest.raises(ValidationFailed) as caught:
            await world.registry.replace(world.org, made.id, http(url=moved, **secrets))
        assert caught.value.details["fields"] == [
            {
                "path": "/secrets",
                "code": "moved",
                "message": "The upstream moves to another place: send its secrets again.",
            }
        ]
    again = await world.registry.replace(world.org, made.id, http(url=moved, secrets={"Authorization": "new"}))
    assert world.registry.open_secrets(again) == {"Authorization": "new"}
    assert (await world.registry.replace(world.org, made.id, http(url=moved + "/deeper"))).secrets == again.secrets


async def test_credentials_do_not_follow_to_another_command_or_kind(world: Any) -> None:
    made = await world.registry.create(world.org, stdio(secrets={"TOKEN": "one"}))
    assert (made.command, made.args) == ("server", ("--flag",))
    for moved in (stdio(command=("server", "--other")), stdio(command=("evil",)), UpstreamSpec(name="files", url=URL)):
        with pytest.raises(ValidationFailed):
            await world.registry.replace(world.org, made.id, moved)


async def test_after_a_key_rotation_everything_is_sealed_anew(world: Any) -> None:
    made = await world.registry.create(world.org, http(secrets={"Authorization": "one"}))
    await world.registry.create(world.org, http(name="plain"))
    rotated = Registry(world.store, Vault([b"n" * 32, b"k" * 32]))
    assert await rotated.reseal(world.org) == 1
    assert await rotated.reseal(world.org) == 0
    alone = Registry(world.store, Vault([b"n" * 32]))
    assert alone.open_secrets(await alone.upstream(world.org, made.id)) == {"Authorization": "one"}


# -- what may be said --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["", "-a", "A", "a_b", "a__b", "a b", "a/b", "a" * 64, "a\n", "é"])
async def test_names_that_could_not_be_part_of_a_tool_id_are_refused(world: Any, name: str) -> None:
    assert await faults(world, http(name=name)) == {"/name": "invalid"}


@pytest.mark.parametrize(
    "url",
    ["", "ftp://a.test/", "https://user:pw@a.test/", "https://a.test/#x", "https://a b.test/", "https://", "a.test",
     "https://a.test:99999/", "http://169.254.169.254/latest/meta-data", "http://127.0.0.1:1/", "http://[::1]/",
     "http://localhost/", "http://10.0.0.1/", "http://0x7f.1/", "http://metadata.google.internal/"],
)  # fmt: skip
async def test_addresses_that_must_not_be_contacted_are_refused(world: Any, url: str) -> None:
    assert list(await faults(world, http(url=url))) == ["/url"]


async def test_private_addresses_need_permission_and_metadata_has_none(world: Any) -> None:
    assert await world.registry.create(world.org, http(url="http://127.0.0.1:9/mcp", allow_private=True))
    assert await faults(world, http(name="b", url="http://169.254.169.254/", allow_private=True)) == {
        "/url": "address_refused"
    }


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Transfer-Encoding": "chunked"}, "reserved"), ({"host": "x"}, "reserved"), ({"Connection": "x"}, "reserved"),
        ({"Content-Length": "1"}, "reserved"), ({"Mcp-Session-Id": "x"}, "reserved"),
        ({"Bad Name": "x"}, "invalid_name"), ({"X:": "x"}, "invalid_name"), ({"": "x"}, "invalid_name"),
        ({"X-É": "x"}, "invalid_name"),
        ({"X": "a\r\nEvil: b"}, "invalid_value"), ({"X": "a\0"}, "invalid_value"), ({"X": ""}, "invalid_value"),
        ({"X": " a"}, "invalid_value"), ({"X": "é"}, "invalid_value"), ({"X": "a" * 9000}, "invalid_value"),
        ({"X-One": "1", "x-one": "2"}, "duplicate"),
    ],
)  # fmt: skip
async def test_headers_that_would_break_a_request_are_refused(world: Any, headers: dict[str, str], code: str) -> None:
    assert code in (await faults(world, http(headers=headers))).values()
    assert code in (await faults(world, http(secrets=headers))).values()


async def test_credentials_do_not_belong_among_what_everybody_may_see(world: Any) -> None:
    assert await faults(world, http(headers={"authorization": "Bearer x"})) == {"/headers/authorization": "secret"}
    assert await faults(world, http(headers={"X-A": "1"}, secrets={"x-a": "2"})) == {"/secrets/x-a": "duplicate"}


async def test_http_and_stdio_do_not_mix(world: Any) -> None:
    assert await faults(world, http(command=("x",), cwd="/", env={"A": "b"})) == {
        "/command": "not_for_http", "/cwd": "not_for_http", "/env": "not_for_http",
    }  # fmt: skip
    assert await faults(world, stdio(url=URL, headers={"X-A": "b"}, allow_private=True)) == {
        "/url": "not_for_stdio", "/headers": "not_for_stdio", "/allow_private": "not_for_stdio",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"command": ()}, "/command"), ({"command": (" ",)}, "/command"), ({"command": ("a", "b\0")}, "/command/1"),
        ({"cwd": "relative"}, "/cwd"), ({"env": {"1A": "x"}}, "/env/1A"), ({"env": {"A=B": "x"}}, "/env/A=B"),
        ({"env": {"A": "x\0"}}, "/env/A"), ({"secrets": {"A-B": "x"}}, "/secrets/A-B"),
        ({"env": {"A": "x"}, "secrets": {"A": "y"}}, "/secrets/A"), ({"env": {"a/b": "x"}}, "/env/a~1b"),
    ],
)  # fmt: skip
async def test_commands_that_could_not_be_started_are_refused(world: Any, fields: dict[str, Any], path: str) -> None:
    assert list(await faults(world, stdio(**fields))) == [path]


async def test_all_faults_of_one_upstream_are_told_together(world: Any) -> None:
    spec = http(url="ftp://x", headers={"Host": "x"}, secrets={"A": "a\n"}, cwd="/")
    assert set(await faults(world, spec)) == {"/url", "/headers/Host", "/secrets/A", "/cwd"}


# -- life --------------------------------------------------------------------------------------------------------
async def test_names_are_taken_once_per_organisation_and_never_change(world: Any) -> None:
    made = await world.registry.create(world.org, http())
    await world.registry.create(world.other, http())
    with pytest.raises(Conflict):
        await world.registry.create(world.org, http())
    with pytest.raises(ValidationFailed):
        await world.registry.replace(world.org, made.id, http(name="other"))
    assert (await world.registry.by_name(world.org, "mail")).id == made.id


async def test_the_other_organisation_finds_nothing(world: Any) -> None:
    made = await world.registry.create(world.org, http())
    for attempt in (
        world.registry.upstream(world.other, made.id),
        world.registry.by_name(world.other, "mail"),
        world.registry.replace(world.other, made.id, http()),
        world.registry.delete(world.other, made.id),
    ):
        with pytest.raises(NotFound):
            await attempt
    assert await world.registry.all(world.other) == []


async def test_an_old_version_changes_nothing(world: Any) -> None:
    made = await world.registry.create(world.org, http())
    await world.registry.replace(world.org, made.id, http(timeout_ms=500), made.version)
    for attempt in (
        world.registry.replace(world.org, made.id, http(), made.version),
        world.registry.delete(world.org, made.id, made.version),
    ):
        with pytest.raises(Stale):
            await attempt


@pytest.mark.parametrize("count", [0, 97, 98, 99, 250])
async def test_deleting_an_upstream_takes_its_tools_however_many_and_nobody_elses(world: Any, count: int) -> None:
    made = await world.registry.create(world.org, http())
    kept = await world.registry.create(world.org, http(name="kept"))
    await world.registry.record_listing(world.org, made, {"tools": [{"name": f"t{number}"} for number in range(count)]})
    await world.registry.record_listing(world.org, kept, {"tools": [{"name": "t1"}]})
    before = world.told
    await world.registry.delete(world.org, made.id)
    assert world.told > before
    left = (await world.store.find(Query(TOOLS, "by_org", {"org": world.org}, limit=500))).records
    assert [tool.tool_id for tool in left] == ["kept__t1"]
    with pytest.raises(NotFound):
        await world.registry.upstream(world.org, made.id)


async def test_every_change_raises_the_epoch(world: Any) -> None:
    made = await world.registry.create(world.org, http())
    await world.registry.replace(world.org, made.id, http(enabled=False))
    await world.registry.record_listing(world.org, made, {"tools": [{"name": "t"}]})
    await world.registry.delete(world.org, made.id)
    assert (await world.epoch(), world.told) == (4, 4)
