"""Self-contained HTML: the frame of a page, tables and lists, and what is inlined into it.

Style sheets and scripts are files in `assets/`. A page has no address in it and forbids the browser
to load anything, whatever ends up in its text: names of models and tokens of unknown origin do.
"""

import html
import re
from collections.abc import Sequence
from pathlib import Path

ASSETS = Path(__file__).parent / "assets"

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def document(title: str, body: Sequence[str], assets: Sequence[str] = ()) -> str:
    """A whole page.

    Args:
        title: Shown in the tab and as the heading.
        body: HTML, part by part; empty parts are left out.
        assets: Names of further style sheets and scripts in `assets/`, in order.
    """
    names = ("page.css", "theme.js", "charts.js", *assets)
    styles = "\n".join(asset(name) for name in names if name.endswith(".css"))
    scripts = "\n".join(asset(name) for name in names if name.endswith(".js"))
    content = "\n".join(part for part in body if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>\n{styles}</style></head>\n<body>\n"
        f"<header><h1>{text(title)}</h1>"
        '<button id="theme" type="button" hidden>colours</button></header>\n'
        f'{content}\n<div id="reading" role="status" hidden></div>\n'
        f'<script type="module">\n{scripts}</script>\n</body></html>\n'
    )


def asset(name: str) -> str:
    """The text of a file in `assets/`."""
    return (ASSETS / name).read_text()


def section(title: str, parts: Sequence[str]) -> list[str]:
    """A heading and what is below it; nothing where nothing is below it."""
    kept = [part for part in parts if part]
    return [f"<h2>{text(title)}</h2>", *kept] if kept else []


def table(lines: Sequence[Sequence[str]]) -> str:
    """A table of plain text, the header first."""
    head, *body = lines
    out = [f"<tr>{''.join(f'<th>{text(cell)}</th>' for cell in head)}</tr>"]
    out += [f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in line)}</tr>" for line in body]
    return "<table>" + "".join(out) + "</table>"


def charted(charts: Sequence[str]) -> str:
    """Charts side by side; without one, an empty text."""
    drawn = "".join(charts)
    return f'<div class="charts">{drawn}</div>' if drawn else ""


def listed(items: Sequence[str], kind: str = "notes") -> str:
    """A list of HTML items; without one, an empty text."""
    found = "".join(f"<li>{item}</li>" for item in items)
    return f'<ul class="{kind}">{found}</ul>' if items else ""


def text(value: str) -> str:
    """Plain text as HTML."""
    return html.escape(re.sub(r"(^| )\+- ", r"\1± ", value))
