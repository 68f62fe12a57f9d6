"""Self-contained HTML pages: styles and images are in the page, and there is no script."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import erniekit


def render_page(template: Path, values: Mapping[str, object]) -> str:
    """The page of a Jinja template that extends `shell.html`. All values are escaped.

    The shell takes `title` and `settings`, pairs of a name and a value; a template may also include `chat.html`.
    """
    loader = FileSystemLoader([template.parent, Path(__file__).parent])
    environment = Environment(autoescape=True, undefined=StrictUndefined, loader=loader)
    return environment.get_template(template.name).render({**values, "version": erniekit.__version__})
