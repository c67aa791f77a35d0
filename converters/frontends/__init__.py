"""Model files in, canonical float graphs out. What a file is, its content says and not its name."""

from __future__ import annotations

from converters.frontends.load import Source, load_model
from converters.frontends.sniff import sniff

__all__ = ["Source", "load_model", "sniff"]
