"""Locations that hold a password, a key or a token are refused, and never repeated: they would stay in logs and on disk."""

import re
from urllib.parse import unquote

from vbd.errors import InputError

# Up to the first `?`; a single slash is a common slip, and what follows it is as secret.
_LOCATION = re.compile(r"(?:\b([a-z][a-z0-9+.-]*)://|\b(s3|gs|abfss?|https?):/)([^/?\s]*)([^?\s]*)(\?)?", re.IGNORECASE)
_END = r"[?\s]"
_IN_ENVIRONMENT = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
}


def refuse_credentials(text: str) -> None:
    """Raises InputError for a text with a location that holds a user, a password or options; repeats none of them.

    Options (`?secret_key=...`, `?sig=...`) are refused whatever they are: a location names a place, and all else is set in the
    environment. A secret may hold any character, so nothing before the last `@` is repeated, and nothing after a `?`.
    """
    for found in _LOCATION.finditer(text):
        scheme = (found[1] or found[2]).lower()
        store, path, has_options = unquote(found[3]), found[4], bool(found[5])
        whole = text[found.end(3) - len(found[3]) :]
        user, at, _ = store.rpartition("@")
        # A key often holds a slash: s3://user:half/half@bucket. A colon before a port is none.
        has_password = ":" in store and not re.fullmatch(r"[^:]+:\d+", store)
        if has_password or (at and (scheme, user) != ("gs", "anonymous")):
            _, at, tail = whole.rpartition("@")
            shown = f"{scheme}://..." + (f"@{re.split(_END, tail)[0]}" if at else "")
            what = "holds a user or password"
        elif has_options and scheme != "file":
            shown, what = f"{scheme}://{found[3]}{path}?...", "holds options after the ?, such as a key or a token"
        else:
            continue
        names = _IN_ENVIRONMENT.get(scheme)
        raise InputError(
            f"{shown}: {what}, which would show in logs and on disk; leave it out and set it in the environment"
            + (f" ({names})" if names else "")
        )
