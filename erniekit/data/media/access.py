"""Restricts the images and videos that samples may use: which URLs, and which directory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from erniekit.config import DataConfig


@dataclass(frozen=True, slots=True)
class MediaAccess:
    """The permitted sources of images and videos.

    urls: "none", "public" addresses only, or "any", including this machine and its networks; root: the directory that
    must contain all files after symbolic links are resolved, None for no restriction.
    """

    urls: Literal["none", "public", "any"] = "none"
    root: str | None = None

    @classmethod
    def of(cls, data: DataConfig) -> MediaAccess:
        """The permissions of a configuration."""
        urls: Literal["none", "public", "any"] = "none"
        if data.allow_urls:
            urls = "any" if data.allow_private_urls else "public"
        return cls(urls, None if data.media_root is None else os.path.realpath(data.media_root))

    def has(self, path: str) -> bool:
        """Whether a file, or a directory with all its entries, is below the root. Raises ValueError for an invalid
        path."""
        if self.root is None:
            return True
        paths = [path]
        if os.path.isdir(path):
            paths += [os.path.join(path, name) for name in os.listdir(path)]
        return all(os.path.commonpath([self.root, os.path.realpath(each)]) == self.root for each in paths)


NO_URLS = MediaAccess()
PUBLIC_URLS = MediaAccess("public")
