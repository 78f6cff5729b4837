"""Telling people: an outbox in the store, written in the same commit as what it tells of, and emptied by any worker.

Webhooks are signed as Standard Webhooks say (`webhook-id`, `webhook-timestamp`, `webhook-signature: v1,<base64 HMAC>`);
Slack-compatible URLs get `{"text", "blocks"}`; e-mail goes through the settings' SMTP server (the extra `email`).
Messages say that a call waits, not what is in it: arguments are looked at behind a sign-in.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import secrets
from email.message import EmailMessage
from importlib import import_module
from typing import Any, Final, Protocol

import msgspec
import structlog

from ...catalog.approvals import CHANNELS, DELIVERIES, Approval, Channel, Delivery
from ...catalog.errors import EnterpriseError, Stale, StoreError, UpstreamError
from ...catalog.ids import new_id
from ...catalog.store import Delete, Insert, Query, Replace, Store, Write
from ..addresses import check_url
from ..pool import Pool
from ..pool_origin import Origin, build_head, tls_context
from ..settings import ApprovalSettings
from ..vault import Vault
from .form import drawn

log = structlog.get_logger()

PREFIX: Final = "whsec_"
BACKOFF: Final = (5, 30, 120, 600, 1800, 3600, 10_800)
"""Seconds before the second attempt, the third, and so on; then it is given up and stays visible as failed."""

CLAIM_MS: Final = 60_000
"""How long one worker has for one attempt before another may try."""

SEND_SECONDS: Final = 15.0
MAX_CHANNELS: Final = 50
SENTENCES: Final = {
    "requested": "A call waits for approval.",
    "escalated": "Nobody decided in time: a call now waits for you.",
    "reminded": "A call still waits for approval.",
    "decided": "A call was decided.",
    "expired": "Nobody decided in time: the approval ran out.",
    "finished": "An approved call has ended.",
}


class NotSent(Exception):
    """A message did not arrive; the message says why."""


class Carrier(Protocol):
    async def send(self, channel: Channel, url: str, secret: str, delivery: Delivery) -> None:
        """Raises NotSent."""


def new_secret() -> str:
    """A webhook's signing secret: 24 random bytes, in the form of Standard Webhooks."""
    return PREFIX + base64.b64encode(secrets.token_bytes(24)).decode()


def signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """`v1,...` over `id.timestamp.body`. ValueError for a secret in another form."""
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        raise ValueError("a webhook's secret is whsec_ and base64") from None
    signed = b"%s.%d.%s" % (message_id.encode(), timestamp, body)
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def facts(approval: Approval, event: str, public_url: str) -> dict[str, Any]:
    """What a message says, for programs."""
    return {
        "type": f"approval.{event}",
        "data": {
            "id": approval.id, "org": approval.org, "state": approval.state, "agent_id": approval.agent,
            "agent_name": approval.agent_name, "tool": approval.tool, "risk": approval.risk,
            "rule": approval.rule, "digest": approval.digest, "stage": approval.stage + 1,
            "stage_until": approval.stage_until, "decision_id": approval.call_id,
            "url": f"{public_url.rstrip('/')}/approvals/{approval.id}" if public_url else "",
        },
    }  # fmt: skip


def outbox(approval: Approval, channels: list[Channel], event: str, now: int, public_url: str) -> list[Write]:
    """The writes that go into the commit of what happened: one message per channel that wants it."""
    body = msgspec.json.encode(facts(approval, event, public_url)).decode()
    return [
        Insert(
            DELIVERIES,
            Delivery(
                org=approval.org, id=new_id("delivery"), channel=channel.id, approval=approval.id, event=event,
                body=body, due_at=now, created_at=now, updated_at=now,
            ),
        )
        for channel in channels[:MAX_CHANNELS]
        if channel.enabled and event in channel.events
    ]  # fmt: skip


def slack(body: dict[str, Any], event: str) -> bytes:
    """A message for Slack-compatible incoming webhooks. Text of others is drawn and escaped: it cannot mention."""
    data = body["data"]
    who, tool = _escaped(str(data["agent_name"] or data["agent_id"])), _escaped(str(data["tool"]))
    text = f"{SENTENCES[event]} {who} → {tool} (risk {data['risk'] or 'unknown'}, {data['state']})"
    line = f"*{SENTENCES[event]}*\n{who} → `{tool}`\nRisk: {data['risk'] or 'unknown'} · State: {data['state']}"
    blocks: list[dict[str, Any]] = [{"type": "section", "text": {"type": "mrkdwn", "text": line}}]
    if data["url"]:
        button = {"type": "button", "text": {"type": "plain_text", "text": "Look at it"}, "url": data["url"]}
        blocks.append({"type": "actions", "elements": [button]})
    return msgspec.json.encode({"text": text, "blocks": blocks})


def _escaped(text: str) -> str:
    plain = drawn(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")
    return plain.replace("`", "'").replace("*", "∗")


class Notifier:
    """Empties the outbox. One per worker; workers do not get in each other's way (each message is claimed)."""

    def __init__(self, store: Store, vault: Vault, settings: ApprovalSettings) -> None:
        self._store = store
        self._vault = vault
        self._settings = settings

    async def deliver(self, now: int) -> int:
        """Try what is due; how many arrived. Raises StoreError."""
        page = await self._store.find(Query(DELIVERIES, "due", {"state": "due"}, limit=50, until=now + 1))
        done = await asyncio.gather(*(self._one(delivery, now) for delivery in page.records))
        return sum(done)

    async def _one(self, delivery: Delivery, now: int) -> bool:
        delivery.attempts += 1
        delivery.due_at = now + CLAIM_MS
        try:
            claimed: Delivery = (await self._store.commit(Replace(DELIVERIES, delivery)))[0]
        except Stale:
            return False  # another worker has it
        channel: Channel | None = await self._store.get(CHANNELS, claimed.org, claimed.channel)
        try:
            if channel is None or not channel.enabled:
                await self._store.commit(Delete(DELIVERIES, claimed.org, claimed.id))
                return False
            await self._send(channel, claimed, now)
        except NotSent as error:
            await self._failed(claimed, str(error), now)
            return False
        await self._store.commit(Delete(DELIVERIES, claimed.org, claimed.id))
        return True

    async def _failed(self, delivery: Delivery, why: str, now: int) -> None:
        delivery.error = why[:500]
        delivery.updated_at = now
        if delivery.attempts > len(BACKOFF):
            delivery.state = "failed"
        else:
            delivery.due_at = now + BACKOFF[delivery.attempts - 1] * 1000
        log.warning("approval_message_not_sent", delivery=delivery.id, attempts=delivery.attempts, reason=why)
        try:
            await self._store.commit(Replace(DELIVERIES, delivery))
        except (Stale, StoreError):
            return  # claimed again meanwhile, or the store is away: it falls due by itself

    async def _send(self, channel: Channel, delivery: Delivery, now: int) -> None:
        try:
            async with asyncio.timeout(SEND_SECONDS):
                if channel.kind == "email":
                    await self._mail(channel, delivery)
                else:
                    await self._post(channel, delivery, now // 1000)
        except TimeoutError:
            raise NotSent(f"no answer within {SEND_SECONDS:.0f} s") from None
        except (EnterpriseError, OSError, ValueError) as error:
            raise NotSent(getattr(error, "message", str(error))) from None

    async def _post(self, channel: Channel, delivery: Delivery, seconds: int) -> None:
        """One POST on a connection of its own, through the same guard of addresses as upstreams. No redirects."""
        url = self._vault.open(channel.sealed_url, (channel.org, "channel", "url", channel.id))
        check_url(url, allow_private=channel.allow_private)
        origin = Origin.parse(url)
        headers = [(b"Host", origin.host_line[6:-2]), (b"Content-Type", b"application/json"),
                   (b"User-Agent", b"agenticmail-enterprise")]  # fmt: skip
        if channel.kind == "slack":
            body = slack(msgspec.json.decode(delivery.body), delivery.event)
        else:
            body = delivery.body.encode()
            secret = self._vault.open(channel.sealed_secret, (channel.org, "channel", "secret", channel.id))
            signed = signature(secret, delivery.id, seconds, body)
            headers += [(b"Webhook-Id", delivery.id.encode()), (b"Webhook-Timestamp", str(seconds).encode()),
                        (b"Webhook-Signature", signed.encode())]  # fmt: skip
        headers.append((b"Content-Length", str(len(body)).encode()))
        if origin.secure:
            tls_context()
        pool = Pool(origin, max_connections=1, connect_timeout=5.0, allow_private=channel.allow_private)
        try:
            answer = await pool.send(build_head("POST", origin.target, headers), body, timeout=10.0)
            answer.close()
        except UpstreamError as error:
            raise NotSent(error.message) from None
        finally:
            await pool.close(0.0)
        if not 200 <= answer.status < 300:
            raise NotSent(f"it answered {answer.status}")

    async def _mail(self, channel: Channel, delivery: Delivery) -> None:
        settings = self._settings
        if not settings.smtp_host or not settings.smtp_from:
            raise NotSent("approvals.smtp_host and approvals.smtp_from are not set")
        try:
            smtp = import_module("aiosmtplib")
        except ImportError:
            raise NotSent("e-mail needs aiosmtplib: pip install 'agenticmail-enterprise[email]'") from None
        message = mail(msgspec.json.decode(delivery.body), delivery, settings.smtp_from, channel.recipients)
        try:
            await smtp.send(
                message, hostname=settings.smtp_host, port=settings.smtp_port, timeout=SEND_SECONDS,
                username=settings.smtp_user or None, password=settings.smtp_password or None,
                start_tls=True if settings.smtp_tls == "starttls" else False if settings.smtp_tls == "none" else None,
                use_tls=settings.smtp_tls == "tls",
            )  # fmt: skip
        except smtp.SMTPException as error:
            raise NotSent(str(error)) from None


def mail(body: dict[str, Any], delivery: Delivery, sender: str, recipients: tuple[str, ...]) -> EmailMessage:
    """The e-mail of one message. `Message-ID` is the delivery's: a second attempt is the same mail."""
    data = body["data"]
    message = EmailMessage()
    agent = drawn(str(data["agent_name"] or data["agent_id"])).replace("\n", " ")
    tool = drawn(str(data["tool"])).replace("\n", " ")
    message["Subject"] = f"[approval] {agent}: {tool}"[:200]
    message["From"] = sender
    message["To"] = ", ".join(recipients)
    message["Message-ID"] = f"<{delivery.id}@agenticmail-enterprise>"
    lines = [SENTENCES[delivery.event], "", f"Agent: {agent}", f"Tool:  {tool}", f"Risk:  {data['risk'] or 'unknown'}",
             f"State: {data['state']}", f"Id:    {data['id']}"]  # fmt: skip
    if data["url"]:
        lines += ["", str(data["url"])]
    message.set_content("\n".join(lines) + "\n")
    return message
