"""Recipe: the choices of one conversion, validated before work starts and saved in the bundle."""

# No `from __future__ import annotations`: msgspec would compile each annotation, in every start of a process.

import hashlib
import re

import msgspec

from edgekit.errors import RecipeError

STATIC, DYNAMIC, WEIGHTS = "int8", "int8-dynamic", "int8-weights"
PRECISIONS = ("float32", "float16", STATIC, DYNAMIC, WEIGHTS)
RANGES = ("minmax", "percentile", "entropy", "mse")
ROUNDINGS = ("nearest", "gptq")
LOWERED, DIRECT = "lowered", "direct"
RECIPE_ROUTES = (LOWERED, DIRECT)
PRUNED, UNPRUNED, CHANNELS = "dead", "none", "channels"
MIXED, SHIFTED, FLIPPED = "mixed", "shifted", "flipped"
DISTILLED, FINE_TUNED, OWN = "distilled", "fine-tuned", "own"
RECOVERIES = (MIXED, SHIFTED, FLIPPED, DISTILLED, FINE_TUNED, OWN)  # in the order in which they are taken
RANGES_TEXT = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The choices that turn the canonical float graph into one candidate.

    Attributes:
        precision: ``float32``, ``float16`` (weights, and activations if the runtime computes in half precision),
            ``int8`` (static: weights and activations), ``int8-dynamic`` (weights; activations are quantized at run
            time, inputs and outputs stay float) or ``int8-weights`` (weights only; computation in float).
        per_channel: Integer weights have one scale per output channel.
        symmetric: int8 activations have zero point 0.
        ranges: How activation ranges are computed from the calibration.
        float_layers: Names of layers that stay float in an int8 candidate; on LiteRT their weights are float16.
        int4_layers: Names of layers with 4-bit weights; the others have 8 bits.
        rounding: How 4-bit weights are rounded: each to the ``nearest``, or by ``gptq``, which needs samples.
        equalize: Equalize the ranges of neighbouring channels first.
        correct_bias: Correct biases for the shift that quantized weights cause; needs samples.
        route: How the float file for LiteRT is made: ``lowered`` from the canonical graph with recurrent layers
            unrolled, or ``direct``: with its loops, or by the source's own converter, and without choices per layer.
            ``lowered`` is the default and is stored as absent, so that the bytes of other recipes do not change.
        prune: ``dead`` removes the channels that are 0 on every calibration sample; ``channels`` removes all channels
            that `kept` does not name, and fits the later layers anew. Both need samples. ``none`` is the default and
            is stored as absent.
        kept: For ``channels``: the name of each layer that loses channels, and the channels that it keeps, as in
            ``0-3,7``. Layers whose channels are tied keep the same ones.
        share: For ``channels``: the share of the cost that `kept` was chosen for; for people only.
        seed: Seed of the positions that the fit samples, and of training; 0 is stored as absent.
        recovery: For ``channels``: what was done beside the plain fit, in this order: the fit and the training saw
            ``mixed``, ``shifted`` or ``flipped`` copies of the samples too; the graph was ``distilled`` from the float
            model, ``fine-tuned`` on labels, or trained by the user's ``own`` loop.
    """

    precision: str = "float32"
    per_channel: bool = True
    symmetric: bool = False
    ranges: str = "minmax"
    float_layers: tuple[str, ...] = ()
    int4_layers: tuple[str, ...] = ()
    rounding: str = "nearest"
    equalize: bool = False
    correct_bias: bool = False
    route: str | msgspec.UnsetType = msgspec.UNSET
    # UNSET and not "none", so that manifests without it keep their bytes and digest.
    prune: str | msgspec.UnsetType = msgspec.UNSET
    kept: tuple[tuple[str, str], ...] | msgspec.UnsetType = msgspec.UNSET
    share: float | msgspec.UnsetType = msgspec.UNSET
    seed: int | msgspec.UnsetType = msgspec.UNSET
    recovery: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        for field, known in (("precision", PRECISIONS), ("ranges", RANGES), ("rounding", ROUNDINGS)):
            value = getattr(self, field)
            if value not in known:
                raise RecipeError(f"{field} is {value!r}, expected one of {', '.join(known)}")
        self._check_pruning()
        if self.int4_layers and not self.quantized:
            raise RecipeError(
                f"int4_layers are set and precision is {self.precision!r}, expected an int8 precision",
                advice=f"Set precision to one of {', '.join((STATIC, DYNAMIC, WEIGHTS))}, or remove int4_layers.",
            )
        if self.int4_layers and not self.per_channel:
            raise RecipeError("int4_layers are set and per_channel is false, expected one scale per output channel")
        both = sorted({*self.float_layers} & {*self.int4_layers})
        if both:
            raise RecipeError(f"{', '.join(both)}: listed in float_layers and in int4_layers, expected in one of them")
        if self.route == LOWERED:
            msgspec.structs.force_setattr(self, "route", msgspec.UNSET)
        elif self.route is not msgspec.UNSET:
            self._require_direct()

    def _check_pruning(self) -> None:
        if self.prune not in (PRUNED, UNPRUNED, CHANNELS, msgspec.UNSET):
            raise RecipeError(f"prune is {self.prune!r}, expected one of {UNPRUNED}, {PRUNED}, {CHANNELS}")
        if self.prune == UNPRUNED:
            msgspec.structs.force_setattr(self, "prune", msgspec.UNSET)
        if self.seed == 0:
            msgspec.structs.force_setattr(self, "seed", msgspec.UNSET)
        if not self.recovery:
            msgspec.structs.force_setattr(self, "recovery", msgspec.UNSET)
        given = [name for name in ("kept", "share", "seed", "recovery") if getattr(self, name) is not msgspec.UNSET]
        if self.prune != CHANNELS and given:
            raise RecipeError(
                f"{', '.join(given)}: given without prune {CHANNELS!r}", advice=f"Set prune to {CHANNELS!r}."
            )
        if self.prune == CHANNELS and not self.kept:
            raise RecipeError(
                f"prune is {CHANNELS!r}, and kept names no layer",
                advice='Name the kept channels of layers, for example kept = [["conv1", "0-15"]].',
            )
        for name, text in self.kept or ():
            if not RANGES_TEXT.fullmatch(text):
                raise RecipeError(f"kept of layer {name} is {text!r}, expected channels as in 0-3,7")
        places = [RECOVERIES.index(step) if step in RECOVERIES else -1 for step in self.recovery or ()]
        copies = sum(step in (MIXED, SHIFTED, FLIPPED) for step in self.recovery or ())
        if -1 in places or places != sorted(set(places)) or copies > 1:
            raise RecipeError(
                f"recovery is {list(self.recovery or ())}, expected some of {', '.join(RECOVERIES)} in this order, and "
                "one of the first three at most"
            )

    def _require_direct(self) -> None:
        if self.route != DIRECT:
            raise RecipeError(f"route is {self.route!r}, expected one of {', '.join(RECIPE_ROUTES)}")
        graph = ("float_layers", "int4_layers", "equalize", "correct_bias", "prune")
        if wrong := [field for field in graph if getattr(self, field)]:
            raise RecipeError(
                f"route is {DIRECT!r}, but {', '.join(wrong)} work only on the canonical graph",
                advice=f"Remove them, or set route to {LOWERED!r}.",
            )

    @property
    def direct(self) -> bool:
        """True if the float file keeps its loops, or is made by the source's own converter."""
        return self.route == DIRECT

    @property
    def quantized(self) -> bool:
        """True if weights are integers."""
        return self.precision in (STATIC, DYNAMIC, WEIGHTS)

    @property
    def pruned(self) -> bool:
        """True if channels are removed: those that are dead on the calibration samples, or those that are not kept."""
        return self.prune in (PRUNED, CHANNELS)

    @property
    def lossy(self) -> bool:
        """True if channels are removed that are not dead, so that answers change."""
        return self.prune == CHANNELS

    @property
    def base(self) -> "Recipe":
        """The recipe with its pruning alone. Recipes with the same base start from the same float graph."""
        return Recipe(prune=self.prune, kept=self.kept, share=self.share, seed=self.seed, recovery=self.recovery)

    @property
    def own(self) -> bool:
        """True if the user's own loop trained the graph."""
        return OWN in (self.recovery or ())

    @property
    def without_own(self) -> "Recipe":
        """The recipe without the user's own loop; its graph has the same shape."""
        return msgspec.structs.replace(self, recovery=tuple(step for step in self.recovery or () if step != OWN))

    @property
    def id(self) -> str:
        """A short, stable name, different for every choice.

        Examples are ``float32``, ``int8-symmetric`` and ``int8-dynamic-w4x9-gptq-5f3a20``. In the last one, nine layers
        have 4 bits, and the digest tells which.
        """
        parts = [self.precision]
        if not self.per_channel:
            parts.append("per-tensor")
        if self.symmetric:
            parts.append("symmetric")
        if self.ranges != "minmax":
            parts.append(self.ranges)
        if self.lossy:
            parts.append(f"kept{self.share * 100:.0f}" if self.share is not msgspec.UNSET else "kept")
            parts += (self.recovery or ())[-1:]
        elif self.pruned:
            parts.append("pruned")
        if self.equalize:
            parts.append("equalized")
        if self.correct_bias:
            parts.append("corrected")
        if self.float_layers:
            parts.append(f"float{len(set(self.float_layers))}")
        if self.int4_layers:
            parts.append(f"w4x{len(set(self.int4_layers))}")
        if self.rounding != "nearest":
            parts.append(self.rounding)
        if self.direct:
            parts.append(DIRECT)
        if self.float_layers or self.int4_layers or self.lossy:
            named: list[object] = [sorted(set(self.float_layers)), sorted(set(self.int4_layers))]
            named += [self.kept, self.seed or 0, *(self.recovery or ())] if self.lossy else []
            parts.append(hashlib.sha256(msgspec.json.encode(named)).hexdigest()[:6])
        return "-".join(parts)


WHOLE = Recipe()  # the base of recipes that keep all channels
PRESETS = {name: Recipe(precision=name) for name in PRECISIONS}


def preset(name: str) -> Recipe:
    """The preset called `name`.

    Raises:
        RecipeError: There is no such preset; the advice names the nearest.
    """
    if name in PRESETS:
        return PRESETS[name]
    import difflib  # only for this error

    near = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise RecipeError(f"there is no recipe preset {name!r}", advice=f"{hint}Presets: {', '.join(PRESETS)}.")
