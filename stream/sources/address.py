"""Addresses as they may be shown: no password, no token."""

import re
from urllib.parse import urlsplit

SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
_SECRET = re.compile(r"((?:password|passwd|passw|pass|pwd|token|secret|key|auth|user|username)=)[^&/;]*", re.IGNORECASE)


def parse_scheme(spec: str) -> str | None:
    """"rtsp" for rtsp://..., None for a path."""
    match = SCHEME.match(spec)
    return match.group(1).lower() if match else None


def mask_secrets(url: str) -> str:
    """The URL without user, password and query, fit for messages and camera names."""
    scheme, _, rest = url.partition("://")
    after_password = rest.rpartition("@")[2]  # a password may itself hold "/", "?" and "@"
    shown = _SECRET.sub(r"\1***", re.split(r"[?#]", after_password, maxsplit=1)[0])
    return f"{scheme}://{shown}"


def has_host(url: str) -> bool:
    """Whether the URL names a host and, if any, a port that can be."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
