"""A file fetched by http(s) from wherever a row of data says: bounded in size and time, and from the internet only.

Rows may come from strangers, so that hosts which resolve to this machine or to a network around it (loopback, private,
link-local addresses) are refused, at each redirection anew, unless `SPECULATORS_LOCAL_IMAGES=1` allows them. Where the
environment names a proxy, the proxy resolves, and decides what it reaches.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import queue
import socket
import string
import threading
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

ALLOWS_LOCAL = "SPECULATORS_LOCAL_IMAGES"
READ_SECONDS = 60.0
"""For the server's next bytes."""
TRY_SECONDS = 300.0
"""For all of a file, redirections included."""
PAUSES = (1.0, 5.0)
"""Seconds before each further try."""
MOST_HOPS = 5
_REDIRECTIONS = (301, 302, 303, 307, 308)
_MAY_PASS = (408, 429)
"""What a server answers that may answer otherwise in a while, beside its own failures (5xx)."""


class Refused(ValueError):
    """Why a URL is not fetched, or the server's answer that another try would not change. Never shows the URL."""


class Unreachable(Exception):
    """Why a file did not come, though it may another time. Never shows the URL."""


def download(url: str, most_bytes: int) -> bytes:
    """The content behind an http(s) URL; of a longer one `most_bytes` + 1.

    Raises Refused at once, and Unreachable when each of three tries failed.
    """
    check_url(url)
    for pause in PAUSES:
        try:
            return _in_time(url, most_bytes)
        except Unreachable:  # noqa: PERF203  there are two rounds
            time.sleep(pause)
    return _in_time(url, most_bytes)


def check_url(url: str) -> None:
    """Raise Refused for what is not an http(s) URL with a host and without a user."""
    if not url.isascii() or not url.isprintable() or " " in url:
        raise Refused(
            "in a URL, spaces and characters outside ASCII are written percent-encoded (host names in punycode)"
        )
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise Refused("it is not a URL") from None  # Python's reason may quote a password
    if parts.scheme not in ("http", "https") or not host:
        raise Refused("a URL begins with http://, https:// or data: (base64)")
    if "@" in parts.netloc:
        raise Refused("a URL with a user or password is not fetched; data has no secrets")


def shown_url(url: str) -> str:
    """Scheme, host and path of a URL: its user and its query may be secrets."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "at a malformed URL"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _in_time(url: str, most_bytes: int) -> bytes:
    """One try. It has a thread, as no timeout of a socket ends a server that sends a byte now and then."""
    outcome: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()

    def fetch() -> None:
        try:
            outcome.put(_fetch(url, most_bytes))
        except Exception as error:  # noqa: BLE001  raised by the thread that waits
            outcome.put(error)

    threading.Thread(target=fetch, daemon=True).start()
    try:
        found = outcome.get(timeout=TRY_SECONDS)
    except queue.Empty:
        raise Unreachable(f"it did not come within {TRY_SECONDS:g} s") from None
    if isinstance(found, Exception):
        raise found
    return found


def _fetch(url: str, most_bytes: int) -> bytes:
    for _ in range(1 + MOST_HOPS):
        check_url(url)
        request = urllib.request.Request(url, headers={"User-Agent": "speculators"})  # noqa: S310  checked
        try:
            with _opener(url).open(request, timeout=READ_SECONDS) as answer:
                return _read(answer, most_bytes)
        except urllib.error.HTTPError as error:
            with error:
                url = _redirected(url, error)
        except urllib.error.URLError as error:
            raise Unreachable(f"the server cannot be reached: {error.reason}") from error
        except (http.client.HTTPException, OSError) as error:
            raise Unreachable(f"the server broke off: {error or type(error).__name__}") from error
    raise Refused(f"it is redirected more than {MOST_HOPS} times")


def _read(answer: http.client.HTTPResponse, most_bytes: int) -> bytes:
    promised = answer.length
    content = answer.read(most_bytes + 1)
    if promised is not None and len(content) < min(promised, most_bytes + 1):
        raise Unreachable(f"the server broke off after {len(content)} of {promised} bytes")
    return content


def _redirected(url: str, answer: urllib.error.HTTPError) -> str:
    """The URL that an answer redirects to; raises Refused or Unreachable for an answer that does not."""
    location = answer.headers.get("Location")
    if answer.code in _REDIRECTIONS and location:
        try:
            return urljoin(url, quote(location, safe=string.punctuation, encoding="iso-8859-1"))
        except ValueError:
            raise Refused("it is redirected to what is not a URL") from None
    reason = f"the server answered {answer.code} {answer.reason}"
    raise Unreachable(reason) if answer.code >= 500 or answer.code in _MAY_PASS else Refused(reason)


def _opener(url: str) -> urllib.request.OpenerDirector:
    parts = urlsplit(url)
    if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(parts.netloc):
        return urllib.request.build_opener(_Stay)
    return urllib.request.build_opener(_Stay, urllib.request.ProxyHandler({}), _Http, _Https)


class _Stay(urllib.request.HTTPRedirectHandler):
    """Leaves redirections to `_fetch`, which checks where they go."""

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> None:
        return None

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class _Outward(http.client.HTTPConnection):
    """A connection to the internet only, looked at before a byte is sent (before TLS too)."""

    def connect(self) -> None:
        for *_, address in socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM):
            _check_address(str(address[0]))
        super().connect()
        _check_address(self.sock.getpeername()[0])  # a name may resolve otherwise the second time


class _OutwardTls(http.client.HTTPSConnection, _Outward):
    pass


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Outward, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_OutwardTls, req)


def _check_address(text: str) -> None:
    address = ipaddress.ip_address(text)
    if (not address.is_global or address.is_multicast) and os.environ.get(ALLOWS_LOCAL) != "1":
        raise Refused(
            f"its host has the address {address}, which is not on the internet; {ALLOWS_LOCAL}=1 allows such hosts"
        )
