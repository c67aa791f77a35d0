"""recheck.html: one self-contained page, the outcome first."""

from __future__ import annotations

import jinja2

from converters.recheck.recheck import Recheck

_TITLES = {
    "equal": "Every bit of {samples:,} samples is equal",
    "within-budget": "Within the budget, in {samples:,} samples",
    "worse": "Worse",
    "failed": "It cannot run this bundle",
}


def recheck_html(found: Recheck) -> bytes:
    """The bytes of the page; it loads no other files and runs no script."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("converters.recheck", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    title = _TITLES[found.outcome].format(samples=found.samples)
    return environment.get_template("recheck.html.j2").render(r=found, title=title).encode()
