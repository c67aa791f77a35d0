"""Which releases of edgekit can read a manifest: rules, so that the control side can name devices that are too old.

A device refuses a manifest with keys that it does not know. So each new key, and each new meaning of an old one, has a
line in `NEEDS` with the first release that understands it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from edgekit.bundle.bindings import Binding
from edgekit.bundle.compat import numbers
from edgekit.bundle.manifest import Manifest


def _outputs_are_judged(manifest: Manifest) -> bool:
    return manifest.quality is not None and manifest.quality.outputs is not msgspec.UNSET


def _proof_is_hard(manifest: Manifest) -> bool:
    return manifest.quality is not None and manifest.quality.hard is not msgspec.UNSET


def _any_binding(holds: Callable[[Binding], bool]) -> Callable[[Manifest], bool]:
    return lambda manifest: any(holds(binding) for binding in (*manifest.inputs, *manifest.outputs))


# What a manifest can use, for messages; the first release that reads it; and whether a manifest uses it.
NEEDS: tuple[tuple[str, str, Callable[[Manifest], bool]], ...] = (
    ("a proof for each of several outputs", "0.2.0", _outputs_are_judged),
    ("a proof on hard samples of devices", "0.2.0", _proof_is_hard),
    ("state between calls", "0.2.0", _any_binding(lambda one: one.state is not msgspec.UNSET)),
    ("inputs that are fixed or unread", "0.2.0", _any_binding(lambda one: not one.in_artifact)),
    ("kept channels in its recipe", "0.2.0", lambda manifest: manifest.recipe.lossy),
    ("a limit on what is sent to the cloud tier", "0.2.0", lambda manifest: manifest.may_send != "allowed"),
    ("tensors without a batch as the first axis", "0.2.0", _any_binding(lambda one: one.spec.batch_axis != 0)),
)


class TooOld(msgspec.Struct, frozen=True):
    """Devices that cannot read a bundle.

    Attributes:
        release: The first release of edgekit that reads it.
        uses: What in it older releases cannot read.
        devices: Version of edgekit by the name of each device that is too old.
    """

    release: str
    uses: tuple[str, ...]
    devices: dict[str, str]

    @property
    def message(self) -> str:
        """One line that names the devices, at most ten of them."""
        names = [f"{name} ({version})" for name, version in sorted(self.devices.items())]
        more = [f"and {len(names) - 10} more"] if len(names) > 10 else []
        count = "1 device cannot" if len(names) == 1 else f"{len(names)} devices cannot"
        return (
            f"{count} read this bundle, because it has {', '.join(self.uses)}, which needs edgekit {self.release}: "
            f"{', '.join([*names[:10], *more])}; update edgekit there first"
        )


def too_old(manifest: Manifest, versions: Mapping[str, str]) -> TooOld | None:
    """The devices whose edgekit cannot read `manifest`; None if all can.

    Args:
        manifest: The manifest of a bundle.
        versions: Version of edgekit by the name of each device that would get it. Devices that have not reported theirs
            yet (an empty version) are not judged.
    """
    needed = [(uses, release) for uses, release, applies in NEEDS if applies(manifest)]
    if not needed:
        return None
    release = max((release for _, release in needed), key=numbers)
    old = {name: version for name, version in versions.items() if version and numbers(version) < numbers(release)}
    uses = tuple(use for use, since in needed if any(numbers(version) < numbers(since) for version in old.values()))
    return TooOld(release, uses, old) if old else None
