from converters.lowering.advice import advice_for


def test_advice_says_what_to_type():
    """Control flow names the option that fixes an input, a suppression the cut, and all name the other runtime."""
    assert "--fix NAME=VALUE" in advice_for("If")
    assert "--cut auto" in advice_for("NonMaxSuppression")
    for operator in ("If", "Loop", "Scan", "NonMaxSuppression", "RoiAlign", "Frobnicate"):
        assert "--runtime onnxruntime" in advice_for(operator)
    assert advice_for("Resize", "its mode is cubic").startswith("Not supported: its mode is cubic.")
