"""`edgekit compare`: compares two models or bundles on the same samples."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli.common.console import json_option, needs_extra, print_json, print_table
from edgekit.cli.common.native_output import native_output_hidden
from edgekit.cli.common.numbers import Number


@click.command()
@click.argument("first", metavar="A", type=click.Path(path_type=Path))
@click.argument("second", metavar="B", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Samples (.npz, .npy).")
@click.option("--test", type=click.Path(path_type=Path), help="More samples, with a result of their own.")
@click.option("--metric", help="accuracy, label-accuracy, mse, mae, auc, agreement, or module:function.")
@click.option(
    "--confidence", type=Number(), default=0.95, show_default=True, help="Confidence of the bounds on the drop."
)
@json_option
def compare(
    first: Path, second: Path, data: Path, test: Path | None, metric: str | None, confidence: float, as_json: bool
) -> None:
    """Compare two models or bundles. A is the reference.

    \b
    Examples:
      edgekit compare model.keras bundles/digits-1.0.0-raspberry-pi-4 --data data.npz
      edgekit compare old.onnx new.onnx --data data.npz --metric mse
    """
    with needs_extra("convert"):
        from converters.compare import compare_models

    files = [data] if test is None else [data, test]
    with native_output_hidden():
        results = compare_models(first, second, files, metric=metric, confidence=confidence)
    if as_json:
        print_json({path.name: result for path, result in zip(files, results, strict=True)})
        return
    print_table(
        ["samples", "n", "metric", "A", "B", "drop", "at least", "at most", "largest difference", "same decisions"],
        [
            (
                path.name,
                result.drop.n,
                result.metric,
                f"{result.first:.4f}",
                f"{result.second:.4f}",
                f"{result.drop.value:.4f}",
                f"{result.drop.lower:.4f}",
                f"{result.drop.upper:.4f}",
                f"{result.parity.max_abs:.3g}",
                f"{result.parity.agreement:.1%}",
            )
            for path, result in zip(files, results, strict=True)
        ],
    )
