"""The demo trains again with another seed if its models cannot show its claims."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edgekit.demo.claims import DemoError
from edgekit.demo.journey import TRAININGS, Journey

ROWS = 100


class Trainings:
    """Stands in for the commands of the demo's first two steps: it writes fixed answers for each seed.

    Args:
        folder: Folder of the demo.
        better: Seeds whose cloud model is better than the small model.
    """

    def __init__(self, folder: Path, better: set[int]) -> None:
        self._folder, self._better = folder, better
        self.seeds: list[int] = []

    def run(self, command: str, *, expect: int = 0) -> str:
        words = shlex.split(command)
        if words[1].endswith("digits.py"):
            self.seeds.append(int(words[words.index("--seed") + 1]))
            (self._folder / "model").mkdir(exist_ok=True)
            np.savez(self._folder / "model" / "test.npz", x=np.zeros((ROWS, 1)), y=np.ones(ROWS, int))
        elif words[2] == "edgekit.demo.answers":
            return json.dumps(self._answers())
        else:
            assert words[:2] == ["edgekit", "convert"]
            bundle = self._folder / "bundles" / words[words.index("--name") + 1]
            bundle.mkdir(parents=True)  # fails if bundles of another seed are still in the folder
        return ""

    def _answers(self) -> dict[str, object]:
        scores = [0.9] * 80 + [0.5] * 20
        small = {"labels": [1] * 95 + [0] * 5, "scores": scores}
        right = 99 if self.seeds[-1] in self._better else 90
        cloud = {"labels": [1] * right + [0] * (ROWS - right), "scores": scores}
        bundles = {"digits-1.0.0-raspberry-pi-4": small, "digits-1.0.0-jetson-orin": small}
        return {
            name: {"data": one, "test": one} for name, one in {**bundles, "digits-cloud-1.0.0-server": cloud}.items()
        }


class Lines:
    """A printer that records its notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    @contextlib.contextmanager
    def step(self, label: str) -> Iterator[None]:
        yield

    def print_table(self, headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        raise AssertionError("nothing is measured here")


def journey(folder: Path, better: set[int]) -> tuple[Journey, Trainings, Lines]:
    trainings, lines = Trainings(folder, better), Lines()
    return Journey(folder, trainings, lines, seed=5), trainings, lines  # type: ignore[arg-type]


def make_models(made: Journey) -> None:
    with ThreadPoolExecutor() as pool:
        made._make_models(pool)


def test_models_that_show_the_claims_are_kept_at_once(tmp_path: Path) -> None:
    """There is one training and one conversion, and each target gets a threshold between its scores."""
    made, trainings, lines = journey(tmp_path, {5})
    make_models(made)
    assert (trainings.seeds, lines.notes) == ([5], [])
    assert made._thresholds == {"raspberry-pi-4": 0.9, "jetson-orin": 0.9}


def test_a_seed_that_is_passed_over_is_printed_with_the_reason(tmp_path: Path) -> None:
    """The demo prints why it skips a seed, then trains and converts with the next seed in empty folders."""
    made, trainings, lines = journey(tmp_path, {7})
    make_models(made)
    assert trainings.seeds == [5, 6, 7]
    assert [note.partition(":")[0].strip() for note in lines.notes] == [
        "seed 5 is skipped",
        "seed 6 is skipped",
    ]
    assert "the cloud model (0.900) is not better than that of raspberry-pi-4 (0.950)" in lines.notes[0]


def test_the_demo_gives_up_after_some_trainings(tmp_path: Path) -> None:
    """After the last training the demo fails, and the error names the claim that the models cannot show."""
    made, trainings, _ = journey(tmp_path, set())
    with pytest.raises(DemoError, match=r"4 trainings gave no models .* the cloud model \(0\.900\) is not better"):
        make_models(made)
    assert trainings.seeds == list(range(5, 5 + TRAININGS))


def test_a_later_run_takes_the_models_of_an_earlier_one(tmp_path: Path) -> None:
    """With a cache each seed is trained once, and a note says so; the models are those of the earlier run."""
    for number, expected in enumerate(([5], [])):
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        trainings, lines = Trainings(folder, {5}), Lines()
        trainings.seeds = [5] if number else []  # its answers follow the last training
        made = Journey(folder, trainings, lines, seed=5, cache=tmp_path / "cache")  # type: ignore[arg-type]
        make_models(made)
        assert trainings.seeds == (expected or [5])
        assert (folder / "model" / "test.npz").is_file()
        assert bool(lines.notes) == bool(number)
