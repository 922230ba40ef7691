"""Asking web servers: connections, redirects, the token, and their answers in this program's words."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import HTTPError, LocationValueError
from urllib3.util import parse_url

from cluster.errors import UserError
from cluster.storage import retry
from cluster.storage.base import NotFound
from cluster.storage.retry import PASSING, Transient

TOKEN = "PATCHLINE_HTTP_TOKEN"
"""The variable with a bearer token."""
TOKEN_HOST = "PATCHLINE_HTTP_TOKEN_HOST"
"""The variable with the host that gets the token, as it stands in addresses: with the port where they have one."""
REDIRECTS = 5
"""Redirects that one request follows."""
# Bytes as they are stored, so that ranges and sizes are those of the file.
_HEADERS = {"User-Agent": "patchline", "Accept-Encoding": "identity"}
_pools: dict[tuple[int, str | None], urllib3.PoolManager] = {}
_pools_lock = threading.Lock()

Answer = urllib3.BaseHTTPResponse


@contextmanager
def ask(address: str, headers: Mapping[str, str], name: str) -> Iterator[Answer]:
    """The answer to a GET, with its body still to be read: 200, or where a range was asked for also 206 or 416.

    What breaks until the block ends, the reading of the body included, is Transient. Raises NotFound where
    nothing is there, UserError where the server refuses us or the address is none. Errors say `name`,
    since an address can have a signature.
    """
    try:
        answer = _follow(address, headers, name)
        try:
            if answer.status not in ((200, 206, 416) if "Range" in headers else (200,)):
                raise _explained(answer, urlsplit(address).netloc, name)
            if (coding := answer.headers.get("Content-Encoding", "identity")) != "identity":
                raise OSError(f"{name}: came as {coding}, though its own bytes were asked for")
            yield answer
        finally:
            # Where the body has been read, the connection is kept all the same.
            answer.close()
    except LocationValueError as error:
        raise UserError(f"{name}: the server cannot be asked: {error}") from error
    except (HTTPError, Transient) as error:
        fault = Transient(f"{name}: {error}")
        fault.pause_s = getattr(error, "pause_s", 0.0)
        raise fault from error


def _follow(address: str, headers: Mapping[str, str], name: str) -> Answer:
    """Ask, and ask where the answer sends us, without the token from the first other host on."""
    token = _token(address)
    timeout = urllib3.Timeout(connect=retry.CONNECT_TIMEOUT_S, read=retry.READ_TIMEOUT_S)
    for _ in range(REDIRECTS + 1):
        sent = {**_HEADERS, **headers, **({"Authorization": f"Bearer {token}"} if token else {})}
        # urllib3 returns the answer of each status as it is: asking again and following are done here.
        answer = _pool(address).request(
            "GET", address, headers=sent, redirect=False, retries=False, preload_content=False, timeout=timeout
        )
        if not (place := answer.get_redirect_location()):
            return answer
        answer.close()
        target = urljoin(address, place)
        if not _stays(address, target):
            token = None
        address = target
    raise OSError(f"{name}: redirected more than {REDIRECTS} times")


def _token(address: str) -> str | None:
    host, token = os.environ.get(TOKEN_HOST, ""), os.environ.get(TOKEN, "").strip()
    return token if token and host and urlsplit(address).netloc.lower() == host.lower() else None


def _stays(address: str, target: str) -> bool:
    """Whether a redirect stays with its host, and does not go from an encrypted connection to an open one."""
    old, new = urlsplit(address), urlsplit(target)
    return old.netloc.lower() == new.netloc.lower() and new.scheme in (old.scheme, "https")


def _explained(answer: Answer, host: str, name: str) -> Exception:
    """What an answer without the bytes means."""
    said = f"HTTP {answer.status} {answer.reason or ''}".rstrip()
    if answer.status in PASSING:
        fault = Transient(said)
        pause = answer.headers.get("Retry-After", "")
        fault.pause_s = float(pause) if pause.isdecimal() else 0.0
        return fault
    if answer.status in (404, 410):
        return NotFound(name)
    if answer.status in (401, 403):
        return UserError(
            f"{name}: {said}: check the address, whose signature may have run out, and set {TOKEN} and "
            f"{TOKEN_HOST}={host} where it asks for a token"
        )
    return OSError(f"{name}: {said}")


def _pool(address: str) -> urllib3.PoolManager:
    """This process's connections to a server, or to the proxy that the environment names for it."""
    parts = urlsplit(address)
    proxy = None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)
    key = (os.getpid(), proxy)
    # Looked up without the lock first: a fork while another thread holds it would leave it locked for ever.
    if key not in _pools:
        with _pools_lock:
            if key not in _pools:
                _pools[key] = _new_pool(proxy)
    return _pools[key]


def _new_pool(proxy: str | None) -> urllib3.PoolManager:
    if proxy is None:
        return urllib3.PoolManager(maxsize=32)
    address = proxy if "://" in proxy else f"http://{proxy}"
    credentials = parse_url(address).auth
    headers = urllib3.make_headers(proxy_basic_auth=credentials) if credentials else None
    return urllib3.ProxyManager(address, proxy_headers=headers, maxsize=32)
