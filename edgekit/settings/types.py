"""Types that several settings share, with their bounds."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

Count = Annotated[int, Meta(ge=1)]
CountOrZero = Annotated[int, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
Port = Annotated[int, Meta(extra={"unit": "TCP port"})]
