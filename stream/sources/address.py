"""Addresses: as they may be shown, without a password or token, and as other libraries take them."""

import re
from ipaddress import ip_address
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

MOST_PORT = 65_535
SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d+)?(?=[/?#]|$)")
_CHANNELS = frozenset(("cam", "camera", "ch", "chan", "channel", "id", "input", "profile", "source", "stream",
                       "subtype", "track", "video"))
_SECRET = re.compile(r"((?:password|passwd|passw|pass|pwd|token|secret|key|auth|user|username)=)[^&/;]*", re.IGNORECASE)


def parse_scheme(spec: str) -> str | None:
    """"rtsp" for rtsp://..., None for a path."""
    match = SCHEME.match(spec)
    return match.group(1).lower() if match else None


def mask_secrets(url: str) -> str:
    """The URL without user and password, and with no more of its query than tells channels of one device apart."""
    scheme, _, rest = url.partition("://")
    path, _, query = rest.rpartition("@")[2].partition("#")[0].partition("?")  # a password may itself hold /, ? and @
    kept = urlencode([(key, value) for key, value in parse_qsl(query) if key.lower() in _CHANNELS])
    return f"{scheme.lower()}://" + _SECRET.sub(r"\1***", path) + (f"?{kept}" if kept else "")


def normalise(url: str) -> str:
    """The URL with its scheme in small letters, and whatever a user or password holds written as %23 and the like."""
    scheme, _, rest = url.partition("://")
    user, at, after = rest.rpartition("@")
    if not at or _HOST.fullmatch(rest.partition("/")[0]) or not _HOST.match(after):  # the @ is of the path
        return f"{scheme.lower()}://{rest}"
    name, colon, password = user.partition(":")
    return f"{scheme.lower()}://{quote(unquote(name), '')}{colon}{quote(unquote(password), '')}@{after}"


def has_host(url: str) -> bool:
    """Whether the URL names a host and, if any, a port that can be."""
    try:
        parts = urlsplit(normalise(url))
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def has_valid_port(address: str) -> bool:
    """Whether the number at an address's end, if any, is a port: ZeroMQ takes others too, and listens elsewhere."""
    found = re.search(r":(\d+)$", address)
    return found is None or int(found[1]) <= MOST_PORT


def split_address(address: str) -> tuple[str, str]:
    """Host and port of `host:port`; of [::1]:9155 the host without brackets."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), port


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is reached from this machine only."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
