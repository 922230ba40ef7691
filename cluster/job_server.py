"""Questions to a Ray cluster's job server over plain HTTP: importing Ray's own client takes longer than the answer."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from cluster.errors import UserError

TIMEOUT_S = 10.0
"""How long a job server may take for one answer, in seconds."""
REFUSED = "the Ray cluster at {address} refused {what}: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to its token"


def ask(address: str, path: str) -> dict[str, Any] | None:
    """The JSON with which the job server at `address` answers to `path`; None where it knows nothing of that.

    Raises UserError where nobody answers there in time, or where it refuses us.
    """
    try:
        request = urllib.request.Request(f"{address.rstrip('/')}{path}", headers=authorization())
        with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=_context(address)) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise _refused(address, error) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(
            f"no Ray job server answers at {address}: expected an address such as http://HOST:8265 "
            f"({getattr(error, 'reason', error)})"
        ) from None


def _refused(address: str, error: urllib.error.HTTPError) -> UserError:
    if error.code == 401:
        return UserError(REFUSED.format(address=address, what="us, without a token"))
    if error.code == 403:
        return UserError(REFUSED.format(address=address, what="our token"))
    text = error.read(200).decode(errors="replace").strip()
    return UserError(f"the job server at {address} answers HTTP {error.code}: {text}; look at the log of its dashboard")


def authorization() -> dict[str, str]:
    """What says who we are, as the environment has it now: Ray itself reads that once, as it is imported."""
    token = _token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def _token() -> str:
    """The token by Ray's own rules: a variable, a file that one names, or the file in the home folder."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return ""
    if own := os.environ.get("RAY_AUTH_TOKEN"):
        return own.strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return path.expanduser().read_text().strip()
    except OSError:
        return ""


def _context(address: str) -> ssl.SSLContext | None:
    """As Ray's own client, which finds a private authority by this variable."""
    if not address.startswith("https://"):
        return None
    return ssl.create_default_context(cafile=os.environ.get("REQUESTS_CA_BUNDLE"))
