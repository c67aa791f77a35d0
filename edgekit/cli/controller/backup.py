"""`edgekit controller backup` and `restore`: the database and the keys in one file."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tarfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory, mkstemp

import click
import msgspec

from edgekit import __version__
from edgekit.cli.common.console import control_settings, json_option, needs_extra, note, print_json
from edgekit.cli.common.fleet import author
from edgekit.cli.common.numbers import Seconds
from edgekit.cli.controller.recovery import restore_from_devices
from edgekit.errors import DataError, DiskError, EdgekitError, SettingsError
from edgekit.settings import ControlSettings

FORMAT = 1
INDEX = "backup.json"
MAX_INDEX_BYTES = 16 * 1024**2


class Index(msgspec.Struct, frozen=True):
    """The index of a backup: `files` has the sha256 of every other member by its name."""

    format: int
    edgekit: str
    fleet: str
    made: float
    revision: str
    rows: dict[str, int]
    files: dict[str, str]


@click.command()
@click.option(
    "-o", "output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write (.tar)."
)
@json_option
def backup(output: Path, as_json: bool) -> None:
    """Write the database and the key folder to one file, also while controllers run.

    The file has private keys: keep it like them. The registry is not in it; copy its store.

    \b
    Example:
      edgekit controller backup -o edgekit-backup.tar
    """
    settings = control_settings()
    if output.exists():
        raise SettingsError(f"{output} exists", advice="Name a new file: backups are never overwritten.")
    with needs_extra("controller"):
        from edgekit.state.backup import dump_database
        from edgekit.state.tables import open_database
    engine = open_database(settings.database)
    try:
        with TemporaryDirectory(prefix="edgekit-backup-") as folder:
            revision, rows = dump_database(engine, Path(folder))
            files = {f"database/{path.name}": path for path in sorted(Path(folder).iterdir())}
            keys = _read_keys(settings.keys)
            digests = {name: _sha256(path) for name, path in files.items()}
            digests |= {name: hashlib.sha256(data).hexdigest() for name, data in keys.items()}
            index = Index(FORMAT, __version__, settings.fleet, time.time(), revision, rows, digests)
            _write(output, index, {**files, **keys})
    except OSError as error:
        raise DiskError(f"the backup {output} cannot be written: {error.strerror or error}") from error
    finally:
        engine.dispose()
    if as_json:
        print_json({"file": output, "rows": rows, "keys": len(keys)})
        return
    note(f"{output}: {sum(rows.values())} rows of {len(rows)} tables, {len(keys)} files of {settings.keys}")
    note("it has private keys: keep it where only you can read it")


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--from-devices",
    is_flag=True,
    help="Without a backup: list the devices whose signed reports the broker retains; with --yes also enroll them.",
)
@click.option("--yes", is_flag=True, help="With --from-devices: enroll the listed devices.")
@click.option(
    "--seconds", type=Seconds(1, 600), default=5.0, show_default=True, help="With --from-devices: how long to listen."
)
@json_option
def restore(file: Path | None, from_devices: bool, yes: bool, seconds: float, as_json: bool) -> None:
    """Restore a backup into an empty database and key folder, as edgekit.toml names them. Overwrites nothing.

    Stop every controller of the fleet first. Numbers of assignments and commands go on above those that the devices
    report.

    \b
    Examples:
      edgekit controller restore edgekit-backup.tar
      edgekit controller restore --from-devices
    """
    settings = control_settings()
    if (file is None) != from_devices:
        raise click.UsageError("Name a backup, or give --from-devices.")
    if file is None:
        restore_from_devices(settings, yes=yes, seconds=seconds, as_json=as_json)
    else:
        _restore_file(settings, file, as_json=as_json)


def _restore_file(settings: ControlSettings, file: Path, *, as_json: bool) -> None:
    with needs_extra("controller"):
        from edgekit.state.audit import record
        from edgekit.state.backup import load_database
    with TemporaryDirectory(prefix="edgekit-restore-") as folder:
        index = _unpack(file, Path(folder))
        if index.fleet != settings.fleet:
            raise SettingsError(
                f"the backup is of fleet {index.fleet!r}, edgekit.toml names {settings.fleet!r}",
                advice="Set `fleet` in edgekit.toml to the backup's fleet.",
            )
        keys = {name.removeprefix("keys/"): Path(folder) / name for name in index.files if name.startswith("keys/")}
        _check_keys(settings, keys)
        with _placed({settings.keys / name: path for name, path in keys.items()}):
            entry = {"made": index.made, "edgekit": index.edgekit, "rows": sum(index.rows.values())}
            rows = load_database(
                settings.database,
                Path(folder) / "database",
                index.revision,
                lambda made: record(
                    made, index.fleet, author(), "database.restore", index.fleet, now=time.time(), after=entry
                ),
            )
        if rows != index.rows:
            raise DataError(f"the restored tables have {rows} rows, the backup says {index.rows}")
    if as_json:
        print_json({"fleet": index.fleet, "made": index.made, "rows": rows, "keys": len(keys)})
        return
    made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(index.made))
    note(f"restored {sum(rows.values())} rows and {len(keys)} key files of fleet {index.fleet}, as of {made}")
    note("check the audit log with: edgekit audit verify")


def _read_keys(folder: Path) -> dict[str, bytes]:
    """The files of the key folder by their names in a backup.

    Their bytes are read once: a key may change meanwhile, and a file may be a link, as in a volume of Kubernetes.
    """
    keys = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            try:
                keys[f"keys/{path.relative_to(folder).as_posix()}"] = path.read_bytes()
            except OSError as error:
                raise EdgekitError(f"{path} cannot be read: {error.strerror or error}") from error
    return keys


def _write(output: Path, index: Index, files: Mapping[str, Path | bytes]) -> None:
    """Write the archive; it appears under its name only when it is complete, and no part of it stays otherwise."""
    handle, name = mkstemp(prefix=f".{output.name}-", suffix=".part", dir=output.parent)  # mode 0600
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            with tarfile.open(fileobj=stream, mode="w") as archive:
                for member, data in {INDEX: msgspec.json.encode(index), **files}.items():
                    _add(archive, member, data, int(index.made))
            stream.flush()
            os.fsync(stream.fileno())
        part.rename(output)
    finally:
        part.unlink(missing_ok=True)


def _add(archive: tarfile.TarFile, name: str, data: Path | bytes, made: int) -> None:
    if isinstance(data, Path):
        archive.add(data, arcname=name, recursive=False)
        return
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = len(data), made, 0o600
    archive.addfile(member, io.BytesIO(data))


def _unpack(file: Path, folder: Path) -> Index:
    """Unpack the members that the index names into `folder`, and compare their digests."""
    try:
        with tarfile.open(file, "r:") as archive:
            first = archive.next()
            if first is None or first.name != INDEX or first.size > MAX_INDEX_BYTES:
                raise DataError(f"{file} has no {INDEX}, so it is no backup of edgekit")
            index = msgspec.json.decode(_member(archive, first).read(), type=Index)
            if index.format != FORMAT:
                raise DataError(f"the backup has format {index.format}, this edgekit reads {FORMAT}")
            _check_names(file, index)
            for member in archive:
                if member.name == INDEX:
                    continue
                if member.name not in index.files or not member.isreg():
                    raise DataError(f"{file} has the member {member.name!r}, which its index does not name")
                (folder / member.name).parent.mkdir(parents=True, exist_ok=True)
                with (folder / member.name).open("wb") as target:
                    source = _member(archive, member)
                    while chunk := source.read(1024**2):
                        target.write(chunk)
    except (tarfile.TarError, msgspec.MsgspecError, UnicodeDecodeError, EOFError) as error:
        raise DataError(f"{file} is no whole backup: {error}") from error
    for name, digest in index.files.items():
        path = folder / name
        if not path.exists() or _sha256(path) != digest:
            raise DataError(f"{name} in {file} is {'damaged' if path.exists() else 'missing'}; nothing was restored")
    return index


def _check_names(file: Path, index: Index) -> None:
    """Check that every name of the index stays in the folders of a backup."""
    for name in index.files:
        kind, *rest = PurePosixPath(name).parts
        if kind not in ("database", "keys") or not rest or ".." in rest or PurePosixPath(name).as_posix() != name:
            raise DataError(f"{file} names the file {name!r}, expected database/FILE or keys/FILE")


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> io.BufferedIOBase:
    stream = archive.extractfile(member)
    if stream is None:
        raise DataError(f"the member {member.name!r} of the backup is no file")
    return stream  # type: ignore[return-value]


def _check_keys(settings: ControlSettings, keys: dict[str, Path]) -> None:
    different = [
        name
        for name, path in keys.items()
        if (settings.keys / name).exists() and (settings.keys / name).read_bytes() != path.read_bytes()
    ]
    if different:
        raise SettingsError(
            f"{settings.keys} has other files of the names {', '.join(sorted(different))}",
            advice="Restore into an empty key folder: move this one away, or set `keys`.",
        )


@contextlib.contextmanager
def _placed(sources: Mapping[Path, Path]) -> Iterator[None]:
    """Copy files to new places, those that exist left out; remove the copies again where the block fails."""
    with contextlib.ExitStack() as undo:
        for target, source in sources.items():
            if not target.exists():
                _place(source, target)
                undo.callback(target.unlink, missing_ok=True)
        yield
        undo.pop_all()


def _place(source: Path, target: Path) -> None:
    """Copy a file to a new place; it appears there only when it is complete."""
    part = None
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = mkstemp(prefix=f".{target.name}-", suffix=".part", dir=target.parent)  # mode 0600
        part = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(source.read_bytes())
            file.flush()
            os.fsync(file.fileno())
        part.rename(target)
    except OSError as error:
        if part is not None:
            part.unlink(missing_ok=True)
        raise DiskError(f"{target} cannot be written: {error.strerror or error}") from error


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while chunk := file.read(1024**2):
                digest.update(chunk)
            return digest.hexdigest()
    except OSError as error:
        raise EdgekitError(f"{path} cannot be read: {error.strerror or error}") from error
