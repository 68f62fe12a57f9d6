"""The result of a conversion as text: the new YAML file, and the report."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from itertools import groupby

from erniekit.config.convert.combine import Setting
from erniekit.config.convert.convert import Conversion
from erniekit.config.others.table import OFF, NoEquivalent, NotNeeded
from erniekit.config.source import inline_yaml

_WIDTH = 110


def config_text(conversion: Conversion, origin: str) -> str:
    """The new file. origin: the name of the old one."""
    lines = [f"# Converted from {origin} ({conversion.trainer}) by erniekit config convert."]
    for section, settings in groupby(conversion.written, key=lambda setting: setting.key.split(".")[0]):
        listed = list(settings)
        if section == listed[0].key:
            lines += ["", *_lines(listed[0], indent="")]
        else:
            lines += ["", f"{section}:"]
            for setting in listed:
                lines += _lines(setting, indent="  ")
    left = _outcomes(conversion, NoEquivalent)
    if left:
        lines += ["", f"# Settings of {conversion.trainer} without an equivalent:"]
        for keys, outcome in left:
            lines += _wrapped(f"{', '.join(keys)}: {outcome}", "# - ", "#   ")
    return "\n".join(lines) + "\n"


def report_lines(conversion: Conversion) -> Iterator[str]:
    """The report: settings that are mapped, not needed here, and without an equivalent."""
    yield f"{conversion.trainer}: {conversion.keys} keys"
    yield "\nMapped:"
    for setting in conversion.mapped:
        is_default = "" if setting in conversion.written else " (the default)"
        value = "" if setting.value is OFF else f" = {inline_yaml(setting.value)}"
        yield from _wrapped(f"{', '.join(setting.old)} -> {setting.key}{value}{is_default}", "  ", "      ")
    for kind, title in ((NotNeeded, "Not needed here:"), (NoEquivalent, "No equivalent:")):
        outcomes = _outcomes(conversion, kind)
        if outcomes:
            yield f"\n{title}"
        for keys, text in outcomes:
            yield from _wrapped(f"{', '.join(keys)}: {text}", "  ", "      ")
    checks = [setting for setting in conversion.written if setting.comment.startswith("check:")]
    if checks:
        yield "\nTo check:"
    for setting in checks:
        yield from _wrapped(f"{setting.key}: {setting.comment.removeprefix('check: ')}", "  ", "      ")


def _outcomes(
    conversion: Conversion, kind: type[NotNeeded] | type[NoEquivalent]
) -> list[tuple[list[str], str]]:
    """Old keys with a common reason or advice, in the order of the file."""
    found: dict[str, list[str]] = {}
    for item in conversion.unconverted:
        if isinstance(item.outcome, kind):
            text = item.outcome.why if isinstance(item.outcome, NotNeeded) else item.outcome.advice
            found.setdefault(text, []).extend(item.old)
    return [(keys, text) for text, keys in found.items()]


def _lines(setting: Setting, indent: str) -> list[str]:
    """`key: value  # comment`, with a long comment above it. A list of mappings has one line per item."""
    name, value = setting.key.rpartition(".")[2], setting.value
    line, items = f"{indent}{name}: {inline_yaml(value)}", []
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        line, items = f"{indent}{name}:", [f"{indent}  - {inline_yaml(item)}" for item in value]
    if not setting.comment:
        return [line, *items]
    if len(line) + len(setting.comment) + 4 > _WIDTH:
        return [*_wrapped(setting.comment, f"{indent}# ", f"{indent}# "), line, *items]
    return [f"{line}  # {setting.comment}", *items]


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
