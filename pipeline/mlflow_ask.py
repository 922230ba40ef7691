"""What is asked of a tracking server without importing MLflow, which takes seconds; who asks is said as MLflow does.

By its variables (`mlflow.utils.credentials`, `mlflow.utils.rest_utils`): a name and a password, else a token.
"""

from __future__ import annotations

import base64
import configparser
import http.client
import ipaddress
import os
import ssl
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

SETTINGS = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
"""What to set where a server does not let us in."""
DENIED = (401, 403)
NAMES = ("username", "password", "token")


def ask(server: str, path: str, seconds: float) -> bytes:
    """The answer to GET `path`. Raises `urllib.error.HTTPError` for one that is no success, other OSErrors for none."""
    try:
        return _asked(server, path, seconds)
    except (http.client.HTTPException, ValueError) as error:
        # What answers there is no HTTP server, or the address is none.
        raise OSError(f"{type(error).__name__}: {error}".strip()) from error


def _asked(server: str, path: str, seconds: float) -> bytes:
    request = urllib.request.Request(f"{server.rstrip('/')}{path}")
    if said := _authorization():
        # Not for whoever the server may send us on to.
        request.add_unredirected_header("Authorization", said)
    handlers: list[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=_context())]
    if _on_this_machine(server):
        handlers.append(urllib.request.ProxyHandler({}))
    with urllib.request.build_opener(*handlers).open(request, timeout=seconds) as answer:
        return answer.read()


def denied(server: str, error: urllib.error.HTTPError) -> str:
    """What is said where the answer is one of DENIED."""
    known = [f"MLFLOW_TRACKING_{name.upper()}" for name in NAMES if _credential(name)]
    with_what = f"with {' and '.join(known)} as set" if known else "without credentials"
    return f"{server} does not let us in {with_what} ({error.code}): set {SETTINGS}, here and where drivers run"


def _authorization() -> str:
    username, password, token = map(_credential, NAMES)
    if username and password:
        return f"Basic {base64.b64encode(f'{username}:{password}'.encode()).decode()}"
    return f"Bearer {token}" if token else ""


def _credential(name: str) -> str:
    """One of NAMES from the environment, or else, all but the token, from the file that MLflow reads too."""
    if found := os.environ.get(f"MLFLOW_TRACKING_{name.upper()}"):
        return found
    file = configparser.ConfigParser(interpolation=None)
    try:
        file.read(Path("~/.mlflow/credentials").expanduser())
    except (configparser.Error, OSError, UnicodeDecodeError):
        return ""
    return "" if name == "token" else file.get("mlflow", f"mlflow_tracking_{name}", fallback="")


def _context() -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or None)
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if own := os.environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH"):
        context.load_cert_chain(own)
    return context


def _on_this_machine(server: str) -> bool:
    """Whether no proxy of the environment stands between us."""
    host = urllib.parse.urlsplit(server).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
