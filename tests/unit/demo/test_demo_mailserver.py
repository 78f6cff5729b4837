"""The demo's mail server, message by message."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from email import message_from_bytes, policy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agenticmail_enterprise.gateway.demo.mailbox import Mailbox
from agenticmail_enterprise.gateway.demo.mailserver import (
    MAX_LINE,
    MailServer,
    main,
    read_json,
    serve_stdio,
    write_json,
)

ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}


def ask(server, method, /, request_id=1, **params):
    return server.handle({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})


def call(server, name, /, **arguments):
    return ask(server, "tools/call", name=name, arguments=arguments)["result"]


def ids(result):
    return [mail["id"] for mail in result["structuredContent"]["emails"]]


# -- mails ---------------------------------------------------------------------------------------------------------
def test_a_first_run_brings_three_mails_and_a_second_brings_none_back(server, folder):
    assert ids(call(server, "list_inbox")) == ["in-0001", "in-0002", "in-0003"]
    assert call(server, "delete_email", id="in-0002")["structuredContent"] == {"deleted": "in-0002"}
    assert ids(call(MailServer(Mailbox(folder)), "list_inbox")) == ["in-0001", "in-0003"]


def test_a_mail_that_is_sent_is_a_file_that_any_mail_program_reads(server, folder):
    text = "Grüße 😀\n\n.\nFrom here on: a line that begins like a header\n"
    sent = call(server, "send_email", to="dana@customer.test", subject="Ihre Bestellung — größer", text=text)
    assert not sent["isError"]
    assert sent["structuredContent"]["path"] == str(folder / "outbox" / "out-0001.eml")
    mail = message_from_bytes((folder / "outbox" / "out-0001.eml").read_bytes(), policy=policy.default)
    assert mail["to"] == "dana@customer.test"
    assert mail["subject"] == "Ihre Bestellung — größer"
    assert mail.get_content().replace("\r\n", "\n") == text
    assert call(server, "read_email", id="out-0001")["structuredContent"]["text"] == text


def test_what_a_tool_says_in_text_and_in_structure_is_the_same(server):
    result = call(server, "read_email", id="in-0001")
    assert json.loads(result["content"][0]["text"]) == result["structuredContent"]
    assert "crack" in result["structuredContent"]["text"]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("REFUNDS", ["in-0002"]),
        ("crack", ["in-0001"]),
        ("example", ["in-0003"]),
        ("nowhere to be found", []),
        (".*", []),
    ],
)
def test_a_search_looks_into_sender_subject_and_text(server, query, found):
    assert ids(call(server, "search_emails", query=query)) == found


def test_many_senders_at_once_overwrite_nothing(server, folder):
    with ThreadPoolExecutor(8) as pool:
        sent = list(
            pool.map(lambda n: call(server, "send_email", to="a@b.test", subject=f"{n}", text=f"{n}"), range(60))
        )
    assert len({result["structuredContent"]["id"] for result in sent}) == 60
    assert len(list((folder / "outbox").iterdir())) == 60


# -- faults --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "mail_id",
    [
        "../inbox/in-0001",
        "in-0001.eml",
        "/etc/passwd",
        "..",
        ".",
        "IN-0001",
        "in 0001",
        "in-0001\n",
        "in\0",
        "ä",
        "-x",
        "x" * 65,
    ],
)
@pytest.mark.parametrize("tool", ["read_email", "delete_email"])
def test_no_id_leads_out_of_the_folder(server, tool, mail_id):
    result = call(server, tool, id=mail_id)
    assert result["isError"]
    assert "structuredContent" not in result


def test_links_are_not_followed(server, folder, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("Subject: secret\n\nkey")
    (folder / "inbox" / "link.eml").symlink_to(secret)
    assert call(server, "read_email", id="link")["isError"]
    assert "link" not in ids(call(server, "list_inbox"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"subject": "s", "text": "t"}, "'to' is missing"),
        ({"to": "a@b.test", "subject": "s", "text": "t", "cc": "x@y.test"}, "'cc' is not an argument"),
        ({"to": ["a@b.test"], "subject": "s", "text": "t"}, "'to' must be a string"),
        ({"to": "a@b.test", "subject": "s", "text": {"path": "/etc/passwd"}}, "'text' must be a string"),
        ({"to": "a@b.test", "subject": "", "text": "t"}, "'subject' must not be empty"),
        ({"to": "a@b.test", "subject": "s\r\nBcc: x@y.test", "text": "t"}, "'subject' is not valid"),
        ({"to": "a@b.test", "subject": "s\n", "text": "t"}, "'subject' is not valid"),
        ({"to": "a@b.test", "subject": "s" * 201, "text": "t"}, "at most 200"),
        ({"to": "a@b.test", "subject": "s", "text": "t" * 100_001}, "at most 100000"),
        ({"to": "a@b.test", "subject": "s", "text": "\ud800"}, "cannot be written"),
        *(
            ({"to": to, "subject": "s", "text": "t"}, "'to' is not valid")
            for to in (
                "a",
                "a@b",
                "a@b.test, c@d.test",
                "A <a@b.test>",
                "a@b.test\n",
                "a@@b.test",
                "@b.test",
                "a@-b.test",
                "ä@b.test",
                "a@b.test;c@d.test",
            )
        ),
    ],
)
def test_bad_arguments_are_told_to_the_model_and_nothing_is_sent(server, folder, arguments, says):
    result = call(server, "send_email", **arguments)
    assert result["isError"]
    assert says in result["content"][0]["text"]
    assert list((folder / "outbox").iterdir()) == []


def test_all_faults_are_told_at_once(server):
    text = call(server, "send_email", to=1, x=2)["content"][0]["text"]
    assert all(word in text for word in ("'subject' is missing", "'text' is missing", "'x' is not", "'to' must be"))


def test_a_folder_that_cannot_be_used_is_told(server, folder):
    for name in ("inbox", "outbox"):
        for file in (folder / name).iterdir():
            file.unlink()
        (folder / name).rmdir()
    assert "could not be used" in call(server, "list_inbox")["content"][0]["text"]
    assert call(server, "send_email", to="a@b.test", subject="s", text="t")["isError"]


def test_a_broken_mail_does_not_break_the_list(server, folder):
    (folder / "inbox" / "broken.eml").write_bytes(b"From: \xff\xfe\nContent-Type: text/plain; charset=odd\n\n\xff\x00")
    (folder / "inbox" / "empty.eml").write_bytes(b"")
    (folder / "inbox" / "notes.txt").write_text("not a mail")
    answer = call(server, "list_inbox")
    assert ids(answer) == ["broken", "empty", "in-0001", "in-0002", "in-0003"]
    assert json.loads(write_json(answer).decode()) == answer
    assert not call(server, "read_email", id="broken")["isError"]


# -- the protocol --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("version", ["2025-11-25", "2025-06-18", "2025-03-26"])
def test_a_known_revision_is_spoken(server, version):
    result = ask(server, "initialize", protocolVersion=version, capabilities={}, clientInfo={})["result"]
    assert result["protocolVersion"] == version
    assert result["capabilities"] == {"tools": {}, "resources": {}, "prompts": {}}


@pytest.mark.parametrize("version", ["2024-11-05", "2026-07-28", "x"])
def test_any_other_is_answered_with_our_newest(server, version):
    assert ask(server, "initialize", protocolVersion=version)["result"]["protocolVersion"] == "2025-11-25"


def test_the_stateless_revision_has_its_own_marks(server):
    found = ask(server, "server/discover", _meta=ENVELOPE)["result"]
    assert found["supportedVersions"] == ["2026-07-28"]
    assert (found["resultType"], found["ttlMs"], found["cacheScope"]) == ("complete", 0, "private")
    listed = ask(server, "tools/list", _meta=ENVELOPE)["result"]
    assert listed["_meta"]["io.modelcontextprotocol/serverInfo"]["name"] == "demo-mail"
    assert "resultType" not in ask(server, "tools/list")["result"]


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("server/discover", {}, -32601),
        ("ping", {"_meta": ENVELOPE}, -32601),
        ("no/such", {}, -32601),
        ("tools/list", {"_meta": {**ENVELOPE, "io.modelcontextprotocol/protocolVersion": "2027-01-01"}}, -32022),
        ("tools/list", {"_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}}, -32602),
        ("tools/list", {"_meta": {**ENVELOPE, "io.modelcontextprotocol/protocolVersion": 7}}, -32602),
        ("tools/list", {"cursor": "x"}, -32602),
        ("tools/call", {}, -32602),
        ("tools/call", {"name": "rm"}, -32602),
        ("tools/call", {"name": 7}, -32602),
        ("tools/call", {"name": "list_inbox", "arguments": []}, -32602),
        ("resources/read", {"uri": "mail://elsewhere"}, -32002),
        ("resources/read", {"uri": "mail://elsewhere", "_meta": ENVELOPE}, -32602),
        ("resources/read", {"uri": "mail://message/../in-0001"}, -32002),
        ("resources/read", {"uri": "file:///etc/passwd"}, -32002),
        ("prompts/get", {"name": "other"}, -32602),
        ("prompts/get", {"name": "draft_reply"}, -32602),
        ("prompts/get", {"name": "draft_reply", "arguments": {"id": "in-9999"}}, -32602),
        ("initialize", {}, -32602),
    ],
)
def test_requests_that_cannot_be_answered_get_their_code(server, method, params, code):
    assert ask(server, method, **params)["error"]["code"] == code


@pytest.mark.parametrize(
    "message",
    [
        7,
        None,
        "x",
        {},
        {"jsonrpc": "1.0", "id": 1, "method": "ping"},
        {"jsonrpc": "2.0", "id": 1},
        {"jsonrpc": "2.0", "id": None, "method": "ping"},
        {"jsonrpc": "2.0", "id": True, "method": "ping"},
        {"jsonrpc": "2.0", "id": {}, "method": "ping"},
        [],
    ],
)
def test_what_is_no_message_is_refused(server, message):
    assert server.handle(message)["error"]["code"] == -32600


def test_notifications_and_answers_get_no_answer(server):
    assert server.handle({"jsonrpc": "2.0", "method": "notifications/initialized"}) is None
    assert server.handle({"jsonrpc": "2.0", "method": "tools/call", "params": {"name": "delete_email"}}) is None
    assert server.handle({"jsonrpc": "2.0", "id": 1, "result": {}}) is None


def test_a_batch_is_answered_as_one(server):
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    answers = server.handle([ping, {"jsonrpc": "2.0", "method": "notifications/x"}, 7, {**ping, "id": 2}])
    assert [answer.get("id") for answer in answers] == [1, None, 2]
    assert server.handle([{"jsonrpc": "2.0", "method": "notifications/x"}]) is None
    assert server.handle([ping] * 101)["error"]["code"] == -32600


def test_a_resource_a_template_and_a_prompt(server):
    listed = ask(server, "resources/list")["result"]["resources"]
    assert [resource["uri"] for resource in listed] == ["mail://inbox", "mail://outbox"]
    inbox = ask(server, "resources/read", uri="mail://inbox")["result"]["contents"][0]
    assert [mail["id"] for mail in json.loads(inbox["text"])] == ["in-0001", "in-0002", "in-0003"]
    assert (
        ask(server, "resources/templates/list")["result"]["resourceTemplates"][0]["uriTemplate"]
        == "mail://message/{id}"
    )
    assert "crack" in ask(server, "resources/read", uri="mail://message/in-0001")["result"]["contents"][0]["text"]
    assert [prompt["name"] for prompt in ask(server, "prompts/list")["result"]["prompts"]] == ["draft_reply"]
    prompt = ask(server, "prompts/get", name="draft_reply", arguments={"id": "in-0001"})["result"]
    assert "crack" in prompt["messages"][0]["content"]["text"]


def test_a_fault_of_the_server_itself_is_told_without_details(server, capsys):
    server._methods["tools/list"] = lambda params: 1 / 0
    error = ask(server, "tools/list")["error"]
    assert error == {"code": -32603, "message": "The server could not do that."}
    assert "ZeroDivisionError" in capsys.readouterr().err


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["send_email", "read_email"])
METHODS = ["initialize", "ping", "tools/list", "tools/call", "resources/read", "prompts/get", "server/discover", ""]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(
    method=st.sampled_from(METHODS) | JSON,
    params=JSON
    | st.fixed_dictionaries({}, optional={"name": NAMES | JSON, "arguments": JSON, "_meta": JSON, "uri": JSON}),
    request_id=st.integers() | st.text(max_size=5) | JSON,
)
def test_no_message_breaks_the_server(server, method, params, request_id):
    answer = server.handle({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})
    assert answer is None or ("result" in answer) != ("error" in answer)
    assert answer is None or answer.get("error", {}).get("code") != -32603


# -- lines ---------------------------------------------------------------------------------------------------------
def play(server, data):
    out = io.BytesIO()
    serve_stdio(server, io.BytesIO(data), out)
    return [json.loads(line) for line in out.getvalue().splitlines()]


PING = b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n'


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense\n",
        b'{"a":1,"a":2}\n',
        b"\xff\xfe\n",
        b'{"a":NaN}\n',
        b"[" * 100_000 + b"\n",
        b"x" * (MAX_LINE + 5) + b"\n",
        b"{}{}\n",
    ],
)
def test_a_bad_line_is_answered_and_the_next_is_read(server, line):
    first, second = play(server, line + b"\n\r\n" + PING)
    assert first["error"]["code"] == -32700
    assert second == {"jsonrpc": "2.0", "id": 1, "result": {}}


def test_the_last_line_needs_no_end(server):
    assert len(play(server, PING + PING.strip())) == 2


def test_a_huge_line_without_an_end_ends_the_server(server):
    assert [answer["error"]["code"] for answer in play(server, b"x" * (MAX_LINE + 5))] == [-32700]


def test_reading_and_writing_keep_every_character():
    assert read_json(write_json({"text": "ü😀\u2028"})) == {"text": "ü😀\u2028"}


def test_a_folder_that_cannot_be_made_is_said_at_start(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["--folder", str(tmp_path / "file" / "mail")]) == 1
    assert "file/mail" in capsys.readouterr().err
