"""Small pieces of HTML."""

import html
from typing import Any


def escape(value: Any) -> str:
    return html.escape(str(value))


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def sentence(text: str) -> str:
    return f"{escape(capital(text).rstrip('.'))}."


def real_minus(number: str) -> str:
    """Return a number with a real minus sign, as wide as a plus."""
    return number.replace("-", "−")


def cell(text: str, interval: str = "") -> str:
    small = f"<small>{real_minus(escape(interval))}</small>" if interval else ""
    return f"<td>{real_minus(escape(text))}{small}</td>"
