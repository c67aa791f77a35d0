"""Advice where LiteRT has no form of an operator. Rules only."""

from __future__ import annotations

OTHER_RUNTIME = (
    "Take ONNX Runtime: --runtime onnxruntime where the target runs both, or another target (`edgekit targets`)."
)
_CUT = (
    "Cut the model before it with --cut auto, or --cut OUTPUT[,OUTPUT]; the step nms after the model takes its place."
)
_PLAIN_CUT = (
    "Cut an ONNX model before it with --cut OUTPUT[,OUTPUT], or save another model without it, and do its work in the "
    "application."
)
_BRANCH = (
    "Where an input decides it, fix that input with --fix NAME=VALUE; otherwise let the model compute both branches, "
    "and choose with Where (torch.where, tf.where)."
)
_BY_OPERATOR = {
    "If": _BRANCH,
    "Loop": "Export the model with a fixed number of steps.",
    "Scan": "Export the model with LSTM, GRU or RNN layers, or with a fixed number of steps.",
    "NonMaxSuppression": _CUT,
    "NonZero": _PLAIN_CUT,
    "Compress": _PLAIN_CUT,
    "Unique": _PLAIN_CUT,
    "RoiAlign": _PLAIN_CUT,
    "TopK": "Cut the model before it with --cut OUTPUT[,OUTPUT]; the step top-k after the model takes its place.",
}


def advice_for(operator: str, why: str = "") -> str:
    """Advice on what to type next where LiteRT does not run `operator`; `why` says what of it has no form."""
    parts = [f"Not supported: {why}." if why else "", _BY_OPERATOR.get(operator, ""), OTHER_RUNTIME]
    return " ".join(part for part in parts if part)
