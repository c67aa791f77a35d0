from edgekit.serving.metrics import render


def test_large_counters_keep_every_digit() -> None:
    """Six digits of a million make rates of zero or of a jump."""
    text = render({'a"b': {"requests": 12_345_678.0, "run_us": 2.0**50}}, {200: 12_345_678}).decode()
    assert 'edgekit_model_requests_total{model="a\\"b"} 12345678\n' in text
    assert f" {2**50}\n" in text
    assert 'edgekit_http_responses_total{code="200"} 12345678\n' in text
