"""The files of the page, read once, with the headers that confine what they may do.

The document names the others by the digest of them all, so that a browser keeps them for as long
as they are the same, and asks for the document only. Must not know what the page does.
"""

from __future__ import annotations

import mimetypes
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

from starlette.responses import Response

if TYPE_CHECKING:
    from starlette.requests import Request

FOLDER: Final = Path(__file__).resolve().parent.parent / "page"

INDEX: Final = "index.html"

POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""The page loads and asks nothing but this dashboard."""

_TYPES: Final = {".js": "text/javascript", ".mjs": "text/javascript", ".svg": "image/svg+xml"}


class PageFiles:
    """The files of a folder, by their paths in it.

    Args:
        folder: The folder; a missing one has no files.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self._files = {
            path.relative_to(folder).as_posix(): (path.read_bytes(), _media_type(path))
            for path in sorted(folder.rglob("*"))
            if path.is_file() and "__pycache__" not in path.parts
        }
        whole = sha256(repr(sorted(self._files.items())).encode()).hexdigest()[:16]
        self._version = f"{whole}/"
        if INDEX in self._files:
            document, media_type = self._files[INDEX]
            named = document.replace(b'"/page/', f'"/page/{self._version}'.encode())
            self._files[INDEX] = named, media_type

    def answer(self, name: str, request: Request) -> Response:
        """Return a file, or that it has not changed, or that there is none."""
        kept = name.startswith(self._version)
        found = self._files.get(name.removeprefix(self._version))
        if found is None:
            return Response("there is no such file\n", 404, media_type="text/plain")
        content, media_type = found
        tag = f'"{sha256(content).hexdigest()[:32]}"'
        headers = {
            "content-security-policy": POLICY,
            "cache-control": "private, max-age=31536000, immutable" if kept else "no-cache",
            "etag": tag,
        }
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=media_type)


def _media_type(path: Path) -> str:
    guessed = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0]
    return guessed or "application/octet-stream"
