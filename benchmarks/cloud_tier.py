"""A cloud tier as a process of its own: `python -m benchmarks.cloud_tier BUNDLE NAME [PORT [SECONDS]]`.

It is the server of `edgekit cloud serve` without a registry. With SECONDS, each run takes that much longer, so that the
tier's capacity is known and costs no CPU time.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from edgekit.bundle.manifest import MANIFEST_NAME, Manifest, parse_manifest
from edgekit.protocols import Runtime
from edgekit.runtimes import open_runtime
from edgekit.serving.cloud import CloudModels
from edgekit.serving.http.app import App
from edgekit.serving.http.limits import Limits
from edgekit.serving.http.server import serve
from edgekit.tensors import Array

CONNECTIONS = 4096


class Slow:
    """A runtime whose runs take longer."""

    def __init__(self, inner: Runtime, seconds: float) -> None:
        self._inner, self._seconds = inner, seconds
        self.inputs, self.outputs, self.provider = inner.inputs, inner.outputs, inner.provider

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model, and wait."""
        time.sleep(self._seconds)
        return self._inner.run(inputs)

    def close(self) -> None:
        """Free it."""
        self._inner.close()


async def serve_bundle(bundle: Path, name: str, port: int, seconds: float) -> None:
    """Serve until the process ends; prints the URL."""

    def load(manifest: Manifest, folder: Path) -> Runtime:
        runtime = open_runtime(manifest, folder)
        return Slow(runtime, seconds) if seconds else runtime

    manifest = parse_manifest((bundle / MANIFEST_NAME).read_bytes())
    models = await CloudModels.open([name], lambda _: (manifest, bundle), threads=1, load=load)
    app = App(models, max_request_bytes=2**20)
    async with serve(app, http=f"127.0.0.1:{port}", limits=Limits(connections=CONNECTIONS)) as bound:
        print(bound.url, flush=True)
        await asyncio.Event().wait()


@contextlib.contextmanager
def running_tier(bundle: Path, name: str, *, port: int = 0, seconds: float = 0.0) -> Iterator[str]:
    """The URL of a cloud tier that runs until the block ends; it is killed then, as by a loss of power."""
    command = [sys.executable, "-m", "benchmarks.cloud_tier", str(bundle), name, str(port), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            if not url:
                raise RuntimeError("the cloud tier of the benchmark did not start")
            yield url
        finally:
            process.kill()


if __name__ == "__main__":
    words = [*sys.argv[1:], "0", "0"]
    asyncio.run(serve_bundle(Path(words[0]), words[1], int(words[2]), float(words[3])))
