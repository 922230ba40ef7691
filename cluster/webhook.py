"""A document sent to a web address of somebody's own, who is told something. Its address is a secret of its own."""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from cluster.errors import UserError

TIMEOUT_SECONDS = 10.0
PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Answers after which it is tried again."""
PAUSES = (0.5, 2.0, 8.0)
"""Seconds before the second and each further try."""


class NotTaken(OSError):
    """The message was not taken; the text names the host alone. `passing` says that it may be taken later."""

    def __init__(self, text: str, *, passing: bool) -> None:
        super().__init__(text)
        self.passing = passing


class _NoRedirects(HTTPRedirectHandler):
    """What a secret address is sent elsewhere for, nobody knows."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def check(address: str) -> None:
    """Raise UserError where that is no address of a web server."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError("the address of the webhook: expected https://HOST/PATH (what it is now may be a secret)")


def post(address: str, document: dict[str, Any]) -> None:
    """POST a document as JSON. Raises NotTaken where it is refused, or not taken within a few tries."""
    host = urlsplit(address).netloc.rpartition("@")[2]
    body = json.dumps(document).encode()
    request = Request(address, body, {"Content-Type": "application/json", "User-Agent": "patchline"}, method="POST")
    opener = build_opener(_NoRedirects)
    for pause in (*PAUSES, None):
        try:
            with opener.open(request, timeout=TIMEOUT_SECONDS):
                return
        except HTTPError as error:
            reason, passing = f"it answers {error.code}", error.code in PASSING
            error.close()
        except OSError as error:
            reason, passing = f"it does not answer: {getattr(error, 'reason', error)}", True
        if pause is None or not passing:
            raise NotTaken(f"the webhook at {host} has not taken a message: {reason}", passing=passing) from None
        time.sleep(pause)
