"""URLs without secrets, for messages and stores."""

from __future__ import annotations

import re

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>)]+")


def shown_url(url: str) -> str:
    """A URL as it may be shown and stored: without user info, query and fragment.

    A local path is returned as it is. Parts of a chained URL (`a://x::b://y`) are cut one by one.
    """
    return "::".join(_shown_part(part) for part in str(url).split("::"))


def _shown_part(part: str) -> str:
    scheme, found, rest = part.partition("://")
    if not found or scheme in ("file", "local", "memory"):
        return part
    place, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{path}"


def without_secrets(text: str) -> str:
    """A text with every URL in it cut by `shown_url`."""
    return _URL.sub(lambda found: shown_url(found.group()), text)
