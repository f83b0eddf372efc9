"""Bytes, seconds and rates as people read them."""

from __future__ import annotations


def size_text(size: float | None) -> str:
    """`1.9 TB`, `740 MB`, `12 kB`; empty when unknown."""
    if size is None:
        return ""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if size >= 9.95 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def time_text(seconds: float | None) -> str:
    """`5 h 10 min`, `3 min 05 s`, `12 s`, `0.4 s`; empty when unknown."""
    if seconds is None:
        return ""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def count_text(count: float) -> str:
    """`65 536`, in groups of three."""
    return f"{count:,.0f}".replace(",", "\u202f")


def age_text(seconds: float) -> str:
    """`just now`, `5 min ago`, `2 h ago`, `3 days ago`: short enough for a column of a table."""
    if days := int(seconds // 86400):
        return f"{days} day{'s' if days > 1 else ''} ago"
    if hours := int(seconds // 3600):
        return f"{hours} h ago"
    return f"{minutes} min ago" if (minutes := int(seconds // 60)) else "just now"
