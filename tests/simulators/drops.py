"""Judgements of candidates whose drops are given, for tests of the selection and of the search."""

from converters.quality.drop import ClassDrop, Drop, Judgement, OutputDrop


def bound(value, upper, n=300, method="clopper-pearson"):
    """A drop with an upper bound."""
    return Drop(value, -1.0, upper, n, method)


def output_drop(name, choice, drop, metric="accuracy"):
    """The result of one output."""
    return OutputDrop(name, metric, choice, drop, drop, (choice + drop.value) / 2, 0.9)


def judgement(choice=0.0, drop=None, others=(), hardest=None):
    """A judgement of the decision output ``scores`` and of `others`; `hardest` is (name, Drop) of a class."""
    outputs = (output_drop("scores", choice, drop or bound(choice, choice + 0.005)), *others)
    one = ClassDrop(hardest[0], hardest[1], hardest[1]) if hardest else None
    return Judgement(outputs, one, one)
