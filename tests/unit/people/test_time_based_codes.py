"""TOTP against the vectors of the RFCs, and what makes a code good once."""

from __future__ import annotations

import base64
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from agenticmail_enterprise.gateway.people import totp

SECRET = base64.b32encode(b"12345678901234567890").decode()


@pytest.mark.parametrize(
    ("count", "code"),
    list(
        enumerate(["755224", "287082", "359152", "969429", "338314", "254676", "287922", "162583", "399871", "520489"])
    ),
)  # RFC 4226, appendix D
def test_codes_are_those_of_rfc_4226(count: int, code: str) -> None:
    assert totp.code_at(SECRET, count) == code


@pytest.mark.parametrize(
    ("seconds", "code"),
    [(59, "94287082"), (1111111109, "07081804"), (1111111111, "14050471"), (1234567890, "89005924"),
     (2000000000, "69279037"), (20000000000, "65353130")],
)  # fmt: skip
def test_codes_are_those_of_rfc_6238(seconds: int, code: str) -> None:
    """Appendix B has eight digits; six of them are the last six."""
    assert totp.code_at(SECRET, totp.step_of(seconds)) == code[-6:]


def test_a_code_is_good_one_step_around_now_and_only_later_than_the_last() -> None:
    now = 1_795_000_000.0
    here = totp.step_of(now)
    for drift, expected in ((-2, None), (-1, here - 1), (0, here), (1, here + 1), (2, None)):
        assert totp.matching_step(SECRET, totp.code_at(SECRET, here + drift), now, 0) == expected
    assert totp.matching_step(SECRET, totp.code_at(SECRET, here), now, here) is None
    assert totp.matching_step(SECRET, totp.code_at(SECRET, here - 1), now, here) is None
    assert totp.matching_step(SECRET, totp.code_at(SECRET, here + 1), now, here) == here + 1


@pytest.mark.parametrize("code", ["", "0", "abcdef", "é23456", "1234567", "\ud800", "٣٤٥٦٧٨"])
def test_what_is_no_code_matches_nothing(code: str) -> None:
    assert totp.matching_step(SECRET, code, 1_795_000_000.0, 0) is None


def test_what_the_app_reads_names_account_issuer_and_parameters() -> None:
    secret = totp.new_secret()
    assert len(base64.b32decode(secret)) == 20
    parts = urlsplit(totp.uri(secret, "olga+x@acme.test", "Acme & Co: Ltd"))
    assert (parts.scheme, parts.netloc) == ("otpauth", "totp")
    assert unquote(parts.path) == "/Acme & Co: Ltd:olga+x@acme.test"
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    expected = {"secret": secret, "issuer": "Acme & Co: Ltd", "algorithm": "SHA1", "digits": "6", "period": "30"}
    assert query == expected
