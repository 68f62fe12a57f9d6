"""Which images and videos samples may name: http(s) URLs or none, and files anywhere or in one directory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from erniekit.config import DataConfig


@dataclass(frozen=True, slots=True)
class MediaAccess:
    """What the sources of media may be.

    urls: "none", those at "public" addresses, or "any", which includes this machine and its networks; root: the
    directory that files must be in after symbolic links are followed, None for any place.
    """

    urls: Literal["none", "public", "any"] = "none"
    root: str | None = None

    @classmethod
    def of(cls, data: DataConfig) -> MediaAccess:
        """What a configuration allows."""
        urls: Literal["none", "public", "any"] = "none"
        if data.allow_urls:
            urls = "any" if data.allow_private_urls else "public"
        return cls(urls, None if data.media_root is None else os.path.realpath(data.media_root))

    def has(self, path: str) -> bool:
        """Whether a file, or a directory with all that it holds, is in the root. Raises ValueError for no path."""
        if self.root is None:
            return True
        paths = [path]
        if os.path.isdir(path):
            paths += [os.path.join(path, name) for name in os.listdir(path)]
        return all(os.path.commonpath([self.root, os.path.realpath(each)]) == self.root for each in paths)


NO_URLS = MediaAccess()
PUBLIC_URLS = MediaAccess("public")
