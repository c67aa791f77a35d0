"""Reads settings once: defaults, then a TOML file, then the environment, then flags."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import msgspec

from edgekit.bounds import MAX_INTEGER, not_finite
from edgekit.errors import SettingsError
from edgekit.settings.agent import AgentSettings
from edgekit.settings.control import ControlSettings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PREFIX = "EDGEKIT_"
MAX_SETTINGS_BYTES = 64 * 1024
MAX_LINE_BYTES = 1000
_URL_SCHEMES = {"registry": "file://", "database": "sqlite:///"}

S = TypeVar("S", ControlSettings, AgentSettings)


def load_settings(
    kind: type[S],
    *,
    file: Path | None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> S:
    """Read settings; a later source wins over an earlier one: defaults, `file`, `environ`, `flags`.

    Args:
        kind: Class of the settings.
        file: TOML file; None for none. Paths in it, and default paths, start at its folder.
        environ: Environment variables; ``EDGEKIT_<NAME>`` sets the field `name`. None for those of this process.
        flags: Values by field name; a value of None is ignored.

    Raises:
        SettingsError: the file is missing or not TOML, a key is unknown (names the nearest), or a value has a wrong
            type or is out of its bounds.
    """
    values: dict[str, Any] = {}
    if file is not None:
        values.update(_read_file(kind, file))
    environ = os.environ if environ is None else environ
    for name in kind.__struct_fields__:
        if PREFIX + name.upper() in environ:
            values[name] = environ[PREFIX + name.upper()]
    values.update({name: value for name, value in (flags or {}).items() if value is not None})
    where = f"settings{f' in {file}' if file else ''}"
    try:
        settings = msgspec.convert(values, kind, strict=False, dec_hook=_decode_path)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{where}: {error}") from error
    if odd := list(not_finite(settings)):
        raise SettingsError(f"{where}: {', '.join(odd)} must be a finite number of at most {MAX_INTEGER}")
    return settings


def _read_file(kind: type[Any], file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            values = tomllib.loads(_decode_text(opened.read(MAX_SETTINGS_BYTES + 1), file))
    except FileNotFoundError as error:
        raise SettingsError(f"there is no settings file {file}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"settings file {file} cannot be read: {error}") from error
    for key in values:
        if key not in kind.__struct_fields__:
            import difflib  # only for this error

            near = difflib.get_close_matches(key, kind.__struct_fields__, n=1, cutoff=0.4)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known keys: {', '.join(kind.__struct_fields__)}."
            raise SettingsError(f"settings file {file} has an unknown key {key!r}", advice=hint)
    return _resolve_paths(file.parent, kind, values)


@functools.cache
def _fields(kind: type[Any]) -> tuple[msgspec.structs.FieldInfo, ...]:
    """The fields of a class of settings; it evaluates every annotation, and an agent reads its settings twice."""
    return msgspec.structs.fields(kind)


def _decode_text(data: bytes, file: Path) -> str:
    """The text of a settings file. Its size and line length are bounded: long dotted keys cost the parser gigabytes."""
    longest = max(map(len, data.splitlines()), default=0)
    if len(data) > MAX_SETTINGS_BYTES or longest > MAX_LINE_BYTES:
        raise SettingsError(
            f"settings file {file} is over {MAX_SETTINGS_BYTES} bytes, or has a line over {MAX_LINE_BYTES} "
            f"(longest: {longest})"
        )
    return data.decode("utf-8")


def _resolve_paths(folder: Path, kind: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """`values` and the defaults, with every relative path started at `folder`."""
    fields = _fields(kind)  # type: ignore[arg-type]  # mypy takes no class for hashable
    values = {**{f.name: f.default for f in fields if f.default is not msgspec.NODEFAULT}, **values}
    for field in fields:
        value, declared = values.get(field.name), bare_type(field.type)
        if declared in (Path, Path | None) and isinstance(value, str | Path):
            values[field.name] = folder / value
        elif declared == tuple[Path, ...] and isinstance(value, list) and all(isinstance(v, str) for v in value):
            values[field.name] = [folder / one for one in value]
        elif field.name in _URL_SCHEMES and isinstance(value, str):
            values[field.name] = _resolve_url(value, _URL_SCHEMES[field.name], folder)
    return values


def bare_type(declared: Any) -> Any:
    """A field's type without its outer ``Annotated``."""
    return bare_type(get_args(declared)[0]) if get_origin(declared) is Annotated else declared


def _resolve_url(url: str, scheme: str, folder: Path) -> str:
    path = url.removeprefix(scheme)
    if not url.startswith(scheme) or Path(path).is_absolute():
        return url
    return scheme + str((folder / path).resolve())


def _decode_path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")
