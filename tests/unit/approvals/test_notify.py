"""People are told: signed, retried, through the guard of addresses, and never what is in the call."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from agenticmail_enterprise.adapters.stores import memory
from agenticmail_enterprise.catalog.approvals import DELIVERIES, Delivery
from agenticmail_enterprise.catalog.calls import Tool
from agenticmail_enterprise.catalog.errors import ValidationFailed
from agenticmail_enterprise.catalog.store import Query
from agenticmail_enterprise.gateway.approvals.book import ChannelSpec
from agenticmail_enterprise.gateway.approvals.engine import ApprovalEngine, Ask
from agenticmail_enterprise.gateway.approvals.notify import BACKOFF, Notifier, mail, new_secret
from agenticmail_enterprise.gateway.settings import ApprovalSettings
from agenticmail_enterprise.gateway.vault import Vault

ASK = Ask(
    org="org_a", agent="agt_a", agent_name="support <!channel>", tool="send_email", arguments={"to": "secret@acme.test"}
)
TOOL = Tool(id="send_email", risk="high")


class Desk:
    def __init__(self, store: Any) -> None:
        self.store = store
        self.vault = Vault([b"k" * 32])
        self.now = 1_800_000_000.0
        self.engine = ApprovalEngine(
            store, self.vault, clock=lambda: self.now, settings=ApprovalSettings(public_url="https://gw.acme.test/")
        )
        self.notifier = Notifier(store, self.vault, self.engine.settings)
        self.got: list[tuple[Any, bytes]] = []
        self.status = 200
        self.url = ""

    async def receive(self, request: web.BaseRequest) -> web.Response:
        self.got.append((request.headers, await request.read()))
        return web.Response(status=self.status, headers={"Location": "http://169.254.169.254/"})

    async def waiting(self) -> list[Delivery]:
        page = await self.store.find(Query(DELIVERIES, "due", {"state": "due"}))
        return page.records


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    store = memory.create("memory://")
    await store.open()
    await store.migrate()
    made = Desk(store)
    runner = web.ServerRunner(web.Server(made.receive))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook?x=1"
    yield made
    await runner.cleanup()
    await store.close()


async def test_a_webhook_is_signed_as_standard_webhooks_say_and_holds_no_arguments(desk: Desk) -> None:
    secret = new_secret()
    await desk.engine.book.create_channel("org_a", ChannelSpec(name="ops", url=desk.url, allow_private=True), secret)
    approval, _ = await desk.engine.hold(ASK, TOOL)
    assert await desk.notifier.deliver(desk.engine.now()) == 1
    ((headers, body),) = desk.got
    assert b"secret@acme.test" not in body
    assert approval.id.encode() in body
    assert b"https://gw.acme.test/approvals/apr_" in body
    signed = f"{headers['Webhook-Id']}.{headers['Webhook-Timestamp']}.".encode() + body
    key = base64.b64decode(secret.removeprefix("whsec_"))
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["Webhook-Signature"] == f"v1,{expected}"
    assert await desk.waiting() == []


@pytest.mark.parametrize("status", [500, 404, 302])
async def test_what_did_not_arrive_is_tried_again_under_the_same_id_and_at_last_given_up(
    desk: Desk, status: int
) -> None:
    desk.status = status
    await desk.engine.book.create_channel(
        "org_a", ChannelSpec(name="ops", url=desk.url, allow_private=True), new_secret()
    )
    await desk.engine.hold(ASK, TOOL)
    for wait in (0, *BACKOFF):
        assert await desk.notifier.deliver(desk.engine.now()) == 0
        desk.now += wait + 61
    assert len({headers["Webhook-Id"] for headers, _ in desk.got}) == 1
    await desk.notifier.deliver(desk.engine.now())
    assert await desk.waiting() == []
    assert len(desk.got) == len(BACKOFF) + 1


async def test_a_slack_message_cannot_mention_or_format(desk: Desk) -> None:
    await desk.engine.book.create_channel(
        "org_a", ChannelSpec(name="s", kind="slack", url=desk.url, allow_private=True), ""
    )
    await desk.engine.hold(ASK, TOOL)
    await desk.notifier.deliver(desk.engine.now())
    ((headers, body),) = desk.got
    assert b"<!channel>" not in body
    assert b"&lt;!channel&gt;" in body
    assert b'"blocks"' in body
    assert "Webhook-Signature" not in headers


@pytest.mark.parametrize(
    "url",
    ["http://169.254.169.254/latest", "http://127.0.0.1:9/x", "http://metadata.google.internal/", "http://[::1]/"],
)
async def test_addresses_that_are_not_public_are_refused(desk: Desk, url: str) -> None:
    with pytest.raises(ValidationFailed) as caught:
        await desk.engine.book.create_channel("org_a", ChannelSpec(name="ops", url=url), new_secret())
    assert caught.value.details["fields"][0]["code"] == "address_refused"


@pytest.mark.parametrize("spec", [
    ChannelSpec(name="a"), ChannelSpec(name="a", kind="email"), ChannelSpec(name="a", kind="email", recipients=("x",)),
    ChannelSpec(name="a", kind="email", recipients=("a@b.c\r\nBcc: x@y.z",)), ChannelSpec(name="a", url="ftp://x/"),
    ChannelSpec(name="a", url="https://hooks.acme.test/", secret="short"),
    ChannelSpec(name="a", url="https://hooks.acme.test/", events=("nonsense",)),
])  # fmt: skip
async def test_a_channel_that_cannot_work_is_refused(desk: Desk, spec: ChannelSpec) -> None:
    with pytest.raises(ValidationFailed):
        await desk.engine.book.create_channel("org_a", spec, new_secret())


async def test_the_stored_channel_shows_neither_address_nor_secret(desk: Desk) -> None:
    secret = new_secret()
    record = await desk.engine.book.create_channel(
        "org_a", ChannelSpec(name="ops", url=desk.url, allow_private=True), secret
    )
    assert desk.url not in record.sealed_url
    assert secret not in record.sealed_secret


def test_a_mail_has_one_subject_line_and_the_deliverys_id() -> None:
    data = {
        "agent_name": "a\nBcc: x@y.z",
        "agent_id": "",
        "tool": "send",
        "risk": "high",
        "state": "pending",
        "id": "apr_1",
        "url": "",
    }
    message = mail({"data": data}, Delivery(org="o", id="dlv_1", event="requested"), "gw@acme.test", ("ana@acme.test",))
    assert message["Bcc"] is None
    assert message["Message-ID"] == "<dlv_1@agenticmail-enterprise>"


async def test_mail_goes_through_the_settings_server(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    smtp = pytest.importorskip("aiosmtplib")
    sent: list[tuple[Any, dict[str, Any]]] = []

    async def send(message: Any, **options: Any) -> None:
        sent.append((message, options))

    monkeypatch.setattr(smtp, "send", send)
    settings = ApprovalSettings(smtp_host="mail.acme.test", smtp_from="gw@acme.test")
    notifier = Notifier(desk.store, desk.vault, settings)
    await desk.engine.book.create_channel(
        "org_a", ChannelSpec(name="m", kind="email", recipients=("ana@acme.test",)), ""
    )
    await desk.engine.hold(ASK, TOOL)
    assert await notifier.deliver(desk.engine.now()) == 1
    ((message, options),) = sent
    assert (message["To"], options["hostname"], options["start_tls"]) == ("ana@acme.test", "mail.acme.test", True)
