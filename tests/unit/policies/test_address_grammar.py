"""E-mail addresses: whose domain it is, or a refusal. Never a guess that another program may make differently."""

import email.utils

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenticmail_enterprise.policies.addresses import BadAddress, domain_of, domains


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("joe@acme.test", ["acme.test"]),
        ("Joe@ACME.Test", ["acme.test"]),
        (" joe@acme.test ", ["acme.test"]),
        ("joe@acme.test.", ["acme.test"]),
        ("joe.doe+tag@mail.acme.test", ["mail.acme.test"]),
        ("Joe Doe <joe@acme.test>", ["acme.test"]),
        ('"Doe, Joe" <joe@acme.test>', ["acme.test"]),
        ("<joe@acme.test>", ["acme.test"]),
        ("Zoë <zoe@acme.test>", ["acme.test"]),
        ("a@x.test, B <b@y.test>,c@z.test", ["x.test", "y.test", "z.test"]),
        ('"A, B" <a@x.test>, b@y.test', ["x.test", "y.test"]),
        ("a@bücher.example", ["xn--bcher-kva.example"]),
        ("a@xn--bcher-kva.example", ["xn--bcher-kva.example"]),
        ("a@XN--BCHER-KVA.example", ["xn--bcher-kva.example"]),
        ("root@localhost", ["localhost"]),
    ],
)
def test_accepted(text, expected):
    assert domains(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", " ", ",", "joe", "@acme.test", "joe@", "joe@@acme.test", "a@evil.test@acme.test",
        "a@x.test,", "a@x.test,,b@y.test", "a@x.test;b@y.test", "a@x.test b@evil.test",
        "joe@acme.test\nBcc: x@evil.test", "joe@acme.test\r\n", "joe@acme.test\0", "joe\t@acme.test",
        "joe(comment)@acme.test", "joe@acme.test (evil@evil.test)", "joe@(x)acme.test", '"joe"@acme.test',
        '"a@acme.test, x"@evil.test', '"joe@acme.test" <x@evil.test>', "joe@acme.test <x@evil.test>",
        "<joe@acme.test> x@evil.test", "<x@evil.test> <joe@acme.test>", "x <y <joe@acme.test>", "joe@acme.test>",
        "evil!x@acme.test", "x%evil.test@acme.test", "@evil.test:x@acme.test", "Group: a@acme.test;", "joe@[10.0.0.1]",
        "joe@10.0.0.1", "joe@0x7f000001", "joe@[IPv6:::1]", "joe@-acme.test", "joe@acme-.test", "joe@acme..test",
        "joe@.acme.test", "joe@acme.test..", "joe@acme_x.test", ".joe@acme.test", "joe.@acme.test", "j..oe@acme.test",
        '"unclosed <joe@acme.test>', 'a"b <joe@acme.test>', r'"a\" <joe@acme.test>',
        "joe@acme。test", "joe@acme．test", "joe@ａcme.test", "joe@acme.test\u200b", "joe@ac\u00adme.test",
        "joe\u202e@acme.test", "jоe@acme.test",  # the local part's o is Cyrillic
        "joe@straße.example", "joe@xn--acme-.test", "joe@xn--.test", "joe@xn--a.test", "joe@xn--99999999999.test",
        "joe＠acme.test", "joe@acme.test\u2028", "x@" + "a" * 64 + ".test", "x@" + "a." * 130 + "test", "x" * 65 + "@acme.test",
        "joe@acme.test?cc=x@evil.test", "mailto:joe@acme.test", "joe@acme.test/x", "joe@acme.test#x", "|prog@acme.test",
    ],
)  # fmt: skip
def test_refused(text):
    with pytest.raises(BadAddress):
        domains(text)


@pytest.mark.parametrize("text", ["joe@аcme.test", "joe@xn--cme-5cd.test"])
def test_a_label_of_two_alphabets_is_refused(text):
    """The first letter of the acme in question is Cyrillic."""
    with pytest.raises(BadAddress, match="look-alike"):
        domains(text)


def test_a_name_in_one_foreign_alphabet_is_fine():
    assert domains("a@пример.example") == ["xn--e1afmkfd.example"]


def test_length_is_bounded():
    assert len(domains(",".join(["a@x.test"] * 5_000))) == 5_000
    with pytest.raises(BadAddress):
        domains(",".join(["a@x.test"] * 10_000))


@given(st.text(max_size=60) | st.text('ab@.<>",;:()\\ x', max_size=30))
def test_whatever_is_accepted_reads_alike_in_the_standard_library(text):
    """Our strict reading and a liberal one agree on whose domain it is: no smuggling between the two."""
    try:
        ours = domains(text)
    except BadAddress:
        return
    theirs = [address.rpartition("@")[2] for _, address in email.utils.getaddresses([text])]
    assert [domain_of(domain) for domain in theirs] == ours


@given(st.text(max_size=20))
def test_canonical_domains_stay_canonical(text):
    try:
        domain = domain_of(text)
    except BadAddress:
        return
    assert domain_of(domain) == domain
    assert domain.isascii()
    assert domain == domain.lower()
