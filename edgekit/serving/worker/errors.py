"""Errors of a model whose process ended. Apart from `runtime`, which starts processes and which few models need."""

from __future__ import annotations

from edgekit.errors import RuntimeLoadError
from edgekit.serving.session.queue import OverloadedError


class WorkerCrashedError(RuntimeLoadError):
    """The process of a model ended during a request, or was ended because the request took too long."""


class WorkerRestartingError(OverloadedError):
    """The process of a model is being restarted."""
