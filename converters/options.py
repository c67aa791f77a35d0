"""Options of one conversion, checked at construction. The Python API and the command line build the same value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from converters.graph.interface import Number
from converters.pruning.kept import LARGEST_SEED, check_pruning
from converters.quality.order import AIMS
from edgekit.bundle.manifest import NAME_PATTERN, VERSION
from edgekit.bundle.recipe import Recipe
from edgekit.errors import ManifestError, SettingsError

SEND_INPUTS = ("allowed", "decoded", "never")
PRUNES = ("auto", "dead", "none")


class ConversionOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of one conversion, as `convert` and `edgekit convert` take them.

    Attributes:
        targets: Names of target profiles; at least one.
        data: Samples to calibrate, choose and prove with; None without data.
        test: Samples that are only reported on.
        metric: Metric of the decision output, or ``module:function``; None for the default.
        metrics: Metrics of other outputs, by the output's name.
        aim: ``cost`` or ``size``: what the chosen artifact makes small.
        max_drop: Largest allowed drop, in the metric's unit.
        max_drops: Largest allowed drop of single outputs, by name.
        max_drop_any_class: Largest allowed drop in each class and group; None to report the worst class only.
        ignore_outputs: Outputs that are not judged.
        task: ``classification``, ``multilabel`` or ``other``, the first two also with ``:probabilities`` or
            ``:logits``; None detects it.
        confidence: Confidence of the bound on the drop, from 0.5 up to 1.
        accept_unproven: Accept a point estimate where the drop cannot be proven.
        max_bytes: Size limit of the artifact in bytes; None for no limit.
        max_cost: Cost limit in the report's unit; None for no limit.
        recipe: The only recipe to try; None for all recipes that the target supports.
        runtime: ``litert`` or ``onnxruntime``; None for the target's default.
        targets_file: TOML file with more target profiles.
        name: Name of the bundles; None for the model's file name.
        version: Version of the bundles, X.Y.Z.
        output: Folder that the bundles are written to.
        preprocess: TOML file of preprocessing steps, or ``auto``; None detects steps where the data are images.
        prune: ``auto`` removes dead channels and searches which others can go, ``dead`` removes dead ones only,
            ``none`` keeps all, and a share such as ``0.5`` keeps that share of the bytes or the cost, as the aim says.
        seed: Seed of everything that is drawn at random.
        finetune: The user's training loop for pruned graphs, ``module:function``; None without one.
        signature: Name of a SavedModel's signature; None for the default one.
        input_shapes: Sizes of all axes of an input, by its name; for inputs with free axes besides the batch.
        dims: Sizes of free axes by their symbol.
        fixed: Values of inputs that are always the same, by name; the graph is specialised for them.
        cut: Tensors of an ONNX model that become its outputs; ``auto`` alone cuts before operators whose number of
            results depends on the data, and writes the steps that take their place.
        send_inputs: What devices may send to the cloud tier at most: ``allowed``, ``decoded`` (tensors of numbers, and
            never bytes as a client sent them) or ``never``.
        state: For a model with state, the input that an output feeds in the next call, by the output's name.

    Raises:
        SettingsError: a value is out of its range.
        RecipeError: the pruning of the recipe is not valid.
        ManifestError: the name or the version is not valid in a bundle.
    """

    targets: Sequence[str]
    data: str | Path | None = None
    test: str | Path | None = None
    metric: str | None = None
    metrics: dict[str, str] = {}
    aim: str = "cost"
    max_drop: float = 0.01
    max_drops: dict[str, float] = {}
    max_drop_any_class: float | None = None
    ignore_outputs: Sequence[str] = ()
    task: str | None = None
    confidence: float = 0.95
    accept_unproven: bool = False
    max_bytes: int | None = None
    max_cost: float | None = None
    recipe: Recipe | None = None
    runtime: str | None = None
    targets_file: str | Path | None = None
    name: str | None = None
    version: str = "1.0.0"
    output: str | Path = "bundles"
    preprocess: str | Path | None = None
    prune: str = "auto"
    seed: int = 0
    finetune: str | None = None
    signature: str | None = None
    input_shapes: Mapping[str, Sequence[int]] = {}
    dims: Mapping[str, int] = {}
    fixed: Mapping[str, Number] = {}
    cut: Sequence[str] = ()
    state: Mapping[str, str] = {}
    send_inputs: str = "allowed"

    def __post_init__(self) -> None:
        if not self.targets:
            raise SettingsError("no target is given", advice="Give --target; `edgekit targets` lists the targets.")
        if self.send_inputs not in SEND_INPUTS:
            raise SettingsError(f"send_inputs is {self.send_inputs!r}, expected {', '.join(SEND_INPUTS)}")
        if self.aim not in AIMS:
            raise SettingsError(f"aim is {self.aim!r}, expected {' or '.join(AIMS)}")
        if self.prune not in PRUNES:
            _require_share(self.prune)
            if self.recipe is not None:
                raise SettingsError(
                    f"prune is {self.prune} and a recipe is given, which says itself what is pruned",
                    advice="Leave one of them out.",
                )
        self._check_finetune()
        if self.recipe is not None:
            check_pruning(self.recipe)
        if not 0 <= self.seed <= LARGEST_SEED:
            raise SettingsError(f"seed is {self.seed}, expected 0 to {LARGEST_SEED}")
        if not 0.5 <= self.confidence < 1.0:
            raise SettingsError(f"confidence is {self.confidence}, expected 0.5 or more and less than 1")
        drops = {"max_drop": self.max_drop, "max_drop_any_class": self.max_drop_any_class}
        drops.update({f"max_drop of {name}": value for name, value in self.max_drops.items()})
        for option, drop in drops.items():
            if drop is not None and not (drop >= 0 and math.isfinite(drop)):
                raise SettingsError(f"{option} is {drop}, expected 0 or more")
        sizes = [*self.dims.values(), *(size for shape in self.input_shapes.values() for size in shape)]
        if any(size < 1 for size in sizes):
            raise SettingsError(f"a size of an input is {min(sizes)}, expected 1 or more")
        for option, limit in (("max_bytes", self.max_bytes), ("max_cost", self.max_cost)):
            if limit is not None and not (limit > 0 and math.isfinite(limit)):
                raise SettingsError(f"{option} is {limit}, expected more than 0")
        if self.name:
            require_name(self.name)
        if not VERSION.fullmatch(self.version):
            raise ManifestError(
                f"version {self.version!r} does not have the form X.Y.Z", advice="Give for example --version 1.0.0."
            )

    def _check_finetune(self) -> None:
        if self.finetune is None:
            return
        module, colon, function = self.finetune.partition(":")
        if not (module and colon and function):
            raise SettingsError(
                f"finetune is {self.finetune!r}, expected module:function",
                advice="Give for example --finetune my_training:train, with the module's folder on PYTHONPATH.",
            )
        if self.data is None or (self.recipe is None and self.prune in ("dead", "none")):
            missing = "there is no data" if self.data is None else f"prune is {self.prune}"
            raise SettingsError(
                f"finetune is given and {missing}: the loop trains pruned graphs on samples",
                advice="Give --data and --prune auto or a share, or leave --finetune out.",
            )
        if self.recipe is not None and not self.recipe.own:
            raise SettingsError(
                "finetune and a recipe are given, and the recipe's recovery has no 'own'",
                advice="Leave one of them out.",
            )

    @property
    def own_code(self) -> bool:
        """True where a metric or the training loop is a function of the user, whose code may change."""
        return self.finetune is not None or any(":" in name for name in (self.metric or "", *self.metrics.values()))


def _require_share(text: str) -> None:
    """Check that `text` is a share. Raises SettingsError."""
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0.0 < share < 1.0:
        raise SettingsError(
            f"prune is {text!r}, expected {', '.join(PRUNES)}, or a share between 0 and 1",
            advice="Give for example --prune 0.5: it keeps half of the cost.",
        )


def require_name(name: str) -> None:
    """Check that `name` is valid as the name of a bundle.

    Raises:
        ManifestError: it is not.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise ManifestError(
            f"name {name!r} does not match {NAME_PATTERN.pattern}", advice="Give another name with --name."
        )
