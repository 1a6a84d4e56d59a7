"""The URLs that external gates may ask: only what an admin's setting `rollout_urls` allows.

The controller stands where tenants do not, so a tenant that could choose any URL would read the operator's own
services through it. Redirects are not followed for the same reason.
"""

from __future__ import annotations

import asyncio
import http.client
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

LONGEST = 2048


def problem(url: str) -> str:
    """What is wrong with an URL by itself; "" if nothing is."""
    if len(url) > LONGEST:
        return f"at most {LONGEST} characters"
    if not url.isascii() or any(c <= " " or c in '\\"<>^`{|}\x7f' for c in url):
        return "has characters that an URL cannot have"
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  it is parsed when it is read
    except ValueError as error:
        return f"is not an URL: {error}"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "is not an URL like https://checks.example.com/green"
    if parts.username is not None or parts.password is not None or parts.fragment:
        return "must have neither a user nor a fragment"
    if any(part.lower().replace("%2e", ".") in (".", "..") for part in parts.path.split("/")):
        return "must not have . or .. in its path"
    return ""


def is_allowed(url: str, prefixes: Iterable[str]) -> bool:
    """Whether one of the prefixes is the URL itself, or a directory that it is in."""
    return not problem(url) and any(_within(urlsplit(url), urlsplit(prefix)) for prefix in prefixes)


def _within(url: SplitResult, prefix: SplitResult) -> bool:
    same = (url.scheme, url.hostname, _port(url)) == (prefix.scheme, prefix.hostname, _port(prefix))
    path = prefix.path or "/"
    if path.endswith("/"):
        return same and (url.path or "/").startswith(path)
    return same and (url.path == path or url.path.startswith(path + "/"))


def _port(url: SplitResult) -> int:
    return url.port or (443 if url.scheme == "https" else 80)


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, or 0 and why there is none."""

    status: int
    text: str = ""


async def fetch(url: str, timeout: float) -> Answer:
    """GET, in a thread of its own; the time is for each step of it, and once more for all."""
    try:
        async with asyncio.timeout(timeout):
            return await asyncio.to_thread(_get, urlsplit(url), timeout)
    except TimeoutError:
        return Answer(0, f"no answer within {timeout:g} s")


def _get(url: SplitResult, timeout: float) -> Answer:
    host = url.hostname or ""
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    if url.scheme == "https":
        context = ssl.create_default_context()
        made: http.client.HTTPConnection = http.client.HTTPSConnection(host, url.port, timeout=timeout, context=context)
    else:
        made = http.client.HTTPConnection(host, url.port, timeout=timeout)
    try:
        made.request("GET", path, headers={"User-Agent": "tealnet-rollout", "Connection": "close"})
        return Answer(made.getresponse().status)
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        return Answer(0, f"{type(error).__name__}: {error}"[:200])
    finally:
        made.close()
