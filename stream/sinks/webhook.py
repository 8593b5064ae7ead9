"""Closed events posted to an HTTP address."""

import hashlib
import hmac
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx

from engines.errors import SinkError, UsageError
from stream.frame import Event, Frame, Record
from stream.sinks.base import RefusedError, Sink, to_json

TIMEOUT_S = 5.0
LATER = (408, 425, 429)  # statuses from 300 to 499 that may be others when asked again
SIGNATURE, TIMESTAMP = "X-Gatestream-Signature", "X-Gatestream-Timestamp"


class Webhook(Sink):
    """Posts every closed event as a JSON object of its own; it may come twice, which its `id` tells.

    headers: sent with each; token_file: of a bearer token; secret_file: of the key of a signature, which is
    hex(HMAC-SHA256(key, timestamp + "." + body)) in SIGNATURE, with Unix seconds in TIMESTAMP. Raises UsageError for
    files that cannot be read."""

    durable = takes_lasting_only = True

    def __init__(self, url: str, headers: Mapping[str, str] | None = None, token_file: Path | None = None,
                 secret_file: Path | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self._url, self._secret = url, None if secret_file is None else read_secret(secret_file).encode()
        token = {} if token_file is None else {"Authorization": f"Bearer {read_secret(token_file)}"}
        self._client = httpx.Client(timeout=timeout_s, headers={
            "Content-Type": "application/json", **(headers or {}), **token})

    def write(self, frame: Frame | None, records: Sequence[Record]) -> None:
        for event in records:
            if isinstance(event, Event) and not event.open:
                self._post(to_json(event).encode())

    def _post(self, body: bytes) -> None:
        signed = {}
        if self._secret is not None:
            now = str(round(time.time()))
            signed = {TIMESTAMP: now, SIGNATURE: hmac.new(self._secret, f"{now}.".encode() + body,
                                                          hashlib.sha256).hexdigest()}
        wanted = "a status from 200 to 299", "check the address, and what answers there"
        try:
            status = self._client.post(self._url, content=body, headers=signed).status_code
        except httpx.HTTPError as error:
            raise SinkError(f"the webhook: {type(error).__name__} {error}", *wanted) from error
        if not 200 <= status < 300:
            permanent = 300 <= status < 500 and status not in LATER
            raise (RefusedError if permanent else SinkError)(f"status {status} from the webhook", *wanted)

    def close(self) -> None:
        self._client.close()


def read_secret(path: Path) -> str:
    """The text of a file that holds a password or token. Raises UsageError."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}, which cannot be read", "a file that holds the secret", "check its path and its "
                         "permissions") from error
