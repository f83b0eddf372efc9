"""Recipes in colour: YAML text to HTML with keys, values and comments marked, everything escaped."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

TOKEN = re.compile(
    r"""(?P<comment>(?:^|(?<=\s))\#.*$)
      | (?P<key>[A-Za-z_][\w.-]*(?=\s*:(?:\s|$)))
      | (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^']|'')*')
      | (?P<number>(?<![\w.:/=-])-?\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?(?![\w.:/=-]))
      | (?P<constant>\b(?:true|false|null)\b)
    """,
    re.VERBOSE,
)


def highlight(yaml: str) -> Markup:
    """The text as lines of escaped HTML with `<span class="y-key">` and its like around what has a meaning."""
    return Markup("\n").join(_line(line) for line in yaml.rstrip().split("\n"))


def _line(line: str) -> Markup:
    parts, end = [], 0
    for match in TOKEN.finditer(line):
        parts.append(escape(line[end : match.start()]))
        parts.append(Markup('<span class="y-{}">{}</span>').format(match.lastgroup, match.group()))
        end = match.end()
    return Markup("").join([*parts, escape(line[end:])])
