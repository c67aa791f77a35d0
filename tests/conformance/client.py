#!/usr/bin/env python3
"""A command line for the public TUF conformance suite: init, refresh and download with edgekit's TrustClient.

The script adds only HTTP, files and exit codes to `edgekit.trust.client`, which the suite tests. It exits 0 on success
and 1 on a refusal.
"""

from __future__ import annotations

import argparse
import io
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import TargetFile

from edgekit.errors import EdgekitError, NotFoundError, UnavailableError, VerificationError
from edgekit.trust.client import TrustClient

FIRST_ROOT = "first_root"  # the initial trusted root; no .json name, because the suite reads every .json as a role
TIMEOUT_SECONDS = 10
MAX_BYTES = 64 * 1024 * 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. None as arguments means those of the process."""
    options = _options(arguments)
    try:
        if options.command == "init":
            _init(options.metadata_dir, options.trusted_root)
            return 0
        root = (options.metadata_dir / FIRST_ROOT).read_bytes()
        client = TrustClient(options.metadata_dir, root, lambda name: _get(options.metadata_url, name, MAX_BYTES))
        client.refresh()
        if options.command == "download":
            for name in options.target_name:
                _download(client, name, options.target_base_url, options.target_dir)
    except EdgekitError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _init(folder: Path, trusted_root: Path) -> None:
    for name in (FIRST_ROOT, "root.json"):
        (folder / name).write_bytes(trusted_root.read_bytes())


def _download(client: TrustClient, name: str, base: str, folder: Path) -> None:
    target = client.find_target(name)
    if target is None:
        raise NotFoundError(f"the repository has no target {name!r}")
    path = folder / urllib.parse.quote(name, "")
    if path.exists() and _matches(target, path.read_bytes()):
        return
    folder_part, slash, last = name.rpartition("/")
    data = _get(base, f"{folder_part}{slash}{next(iter(target.hashes.values()))}.{last}", target.length)
    if not _matches(target, data):
        raise VerificationError(f"{name} is not the file that was signed")
    path.write_bytes(data)


def _matches(target: TargetFile, data: bytes) -> bool:
    try:
        target.verify_length_and_hashes(io.BytesIO(data))
    except LengthOrHashMismatchError:
        return False
    return True


def _get(base: str, name: str, limit: int) -> bytes:
    url = f"{base.rstrip('/')}/{name}"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            data: bytes = response.read(limit + 1)
            return data
    except urllib.error.HTTPError as error:
        if error.code in (403, 404):
            raise NotFoundError(f"{url}: {error.code}") from error
        raise UnavailableError(f"{url}: {error}") from error
    except OSError as error:
        raise UnavailableError(f"{url}: {error}") from error


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--metadata-dir", type=Path, required=True)
    parser.add_argument("--metadata-url")
    parser.add_argument("--target-name", action="append", default=[])
    parser.add_argument("--target-base-url")
    parser.add_argument("--target-dir", type=Path)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init").add_argument("trusted_root", type=Path)
    commands.add_parser("refresh")
    commands.add_parser("download")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
