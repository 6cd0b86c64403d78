"""Secrets and personal data are found by shape; quantities and dates are not taken for them."""

from __future__ import annotations

import pytest

from tasks.lib.data.privacy import excerpt, redacted, without_personal_data

SECRETS = [
    ("hf_abcdefghijklmnopqrstuvwx", "access token"),
    ("sk-proj-abcdefghijklmnop1234", "access token"),
    ("ghp_abcdefghijklmnopqrstuvwxyz0123456789", "access token"),
    ("AKIAIOSFODNN7EXAMPLE", "access token"),
    ("password = hunter2hunter2", "password"),
    ("api_key: 'a1b2c3d4e5f6'", "password"),
    ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", "private key"),
]


@pytest.mark.parametrize("text, kind", SECRETS)
def test_secrets_are_redacted(text: str, kind: str) -> None:
    assert redacted(f"before {text} after") == f"before <{kind}> after"


def test_a_password_in_an_address_is_redacted() -> None:
    assert redacted("s3://user:pass@host/x") == "s3://<password in an address>@host/x"


@pytest.mark.parametrize(
    "text, kind",
    [
        ("mia.smith+news@mail.example.org", "email"),
        ("+44 20 7946 0958", "phone"),
        ("(555) 123-4567", "phone"),
        ("555-123-4567", "phone"),
    ],
)
def test_personal_data_is_found(text: str, kind: str) -> None:
    assert without_personal_data(f"write to {text} today") == (f"write to <{kind}> today", [kind])
    assert without_personal_data(f"write to {text} today", personal=False)[1] == []


@pytest.mark.parametrize(
    "text",
    [
        "1995-96 season",
        "12/25/1937",
        "3.14159",
        "10 + 20 - 30",
        "2026-11-21",
        "97 14",
        "a@b",
        "the password is weak",
    ],
)
def test_quantities_and_dates_are_left_alone(text: str) -> None:
    assert without_personal_data(text) == (text, [])


def test_an_excerpt_is_one_short_printable_line_without_secrets() -> None:
    assert excerpt("a\nb\x00\u202e") == "'a\\nb\\x00\\u202e'"
    assert excerpt("x" * 100) == "'" + "x" * 37 + "...'"
    assert excerpt({"key": "hf_abcdefghijklmnopqrstuvwx"}) == "{'key': '<access token>'}"
    assert excerpt(3) == "3"
