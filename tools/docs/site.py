"""A hook of MkDocs (mkdocs.yml): links that leave docs/ lead to files of the repository, which the site does not have.

On a page of the site such a link becomes its text and the path of the file.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((\.\./[^)#]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, /, *, page: Any, **_: object) -> str:
    """The text of a page, as MkDocs calls it."""
    return without_outer_links(markdown, page.file.src_uri)


def without_outer_links(markdown: str, source: str) -> str:
    """A page without links that lead out of docs/. source: its path in docs/."""
    folder = posixpath.join("docs", posixpath.dirname(source))

    def replaced(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, found[2]))
        if path.startswith("docs/"):
            return found[0]
        return (
            f"`{path}`"
            if found[1].strip("`") in (path, posixpath.basename(path))
            else f"{found[1]} (`{path}`)"
        )

    return _LINK.sub(replaced, markdown)
