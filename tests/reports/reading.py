"""Reading a page back: its figures, its text, and what a browser would load for it."""

import html
import json
import re
from typing import Any


def figures(page: str) -> list[dict[str, Any]]:
    """Every plotly figure of a page."""
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.DOTALL)
    return json.loads(found.group(1)) if found else []


def loads(page: str) -> list[str]:
    """Addresses in attributes that make a browser fetch something; data URIs and links within the page do not."""
    markup = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    found = re.findall(r'(?:src|href|srcset|action)="([^"]*)"', markup) + re.findall(r"(?:url\(|@import)[^;]*", markup)
    return [address for address in found if not address.startswith(("data:image/", "#"))]


def tables(page: str) -> dict[str, list[list[str]]]:
    """Rows of each table, by its caption."""
    found = {}
    for text in re.findall(r"<table>(.*?)</table>", page, re.DOTALL):
        caption = re.search(r"<caption>(.*?)</caption>", text)
        rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", text)]
        found[html.unescape(caption.group(1)) if caption else ""] = [
            [html.unescape(cell) for cell in row] for row in rows
        ]
    return found
