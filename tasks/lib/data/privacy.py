"""What must not be trained on or printed: secrets and personal data, found by pattern.

Patterns find the common shapes only (an e-mail address, a phone number, an access token); they are a net
under the data steward's review, not a replacement for it.
"""

from __future__ import annotations

import re
from typing import Any

SECRETS: dict[str, re.Pattern[str]] = {
    "private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:[\s\S]*?-----END [A-Z ]*PRIVATE KEY-----)?"),
    "access token": re.compile(
        r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"
        r"|glpat-[\w-]{16,}|xox[abposr]-[\w-]{10,}|A(?:KIA|SIA)[0-9A-Z]{16}|AIza[\w-]{30,}"
        r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{4,})"
    ),
    "password": re.compile(
        r"(?i)\b(?:password|passwd|secret|api[_-]?key|access[_-]?key|auth[_-]?token|bearer)\b(?:\s*[=:]\s*|\s+)"
        r"[\"']?(?=[^\s\"']*\d)[^\s\"',;]{8,}[\"']?"
    ),
    "password in an address": re.compile(r"(?<=://)[^\s/:@]+:[^\s/@]+(?=@)"),
}

# A phone number needs a plus sign, brackets or separators: a bare run of digits is more often a quantity.
PERSONAL: dict[str, re.Pattern[str]] = {
    "email": re.compile(r"\b[\w.+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*\.[A-Za-z]{2,24}\b"),
    "phone": re.compile(
        r"(?<![\w+])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{2,4}(?:[ .-]?\d{2,4}){1,4}"
        r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4})(?![\w-])"
    ),
}


def redacted(text: str) -> str:
    """`text` with every secret replaced by its kind in angle brackets: safe to print and to log."""
    for kind, pattern in SECRETS.items():
        text = pattern.sub(f"<{kind}>", text)
    return text


def without_personal_data(text: str, personal: bool = True) -> tuple[str, list[str]]:
    """`text` with secrets (and personal data) replaced by their kinds, and the kinds found in it."""
    patterns = SECRETS
    if personal:
        patterns = SECRETS | PERSONAL
    kinds = []
    for kind, pattern in patterns.items():
        text, count = pattern.subn(f"<{kind}>", text)
        if count:
            kinds.append(kind)
    return text, kinds


def excerpt(value: Any, width: int = 40) -> str:
    """`value` as a message may show it: no secrets, one printable line of at most `width` characters."""
    if not isinstance(value, str):
        return _one_line(ascii(value), width)
    return f"'{_one_line(value[:4096], width)}'"


def _one_line(text: str, width: int) -> str:
    shown = ""
    for character in redacted(text):
        if character.isprintable():
            shown += character
        else:
            shown += ascii(character)[1:-1]  # without its quotes
    if len(shown) > width:
        return shown[: width - 3] + "..."
    return shown
