from edgekit.serving.http.metrics import gauges_of, render


def test_large_counters_keep_every_digit() -> None:
    """Six digits of a million make rates of zero or of a jump."""
    text = render({'a"b': {"requests": 12_345_678.0, "run_us": 2.0**50}}, {200: 12_345_678}).decode()
    assert 'edgekit_model_requests_total{model="a\\"b"} 12345678\n' in text
    assert f" {2**50}\n" in text
    assert 'edgekit_http_responses_total{code="200"} 12345678\n' in text


def test_what_is_now_is_no_counter() -> None:
    """A gauge has its type and no ending of a total; a server that tells none has none."""

    class Server:
        def gauges(self):
            return {"m": {"memory_bytes": 3.0}}

    text = render({}, {}, gauges=gauges_of(Server())).decode()
    assert '# TYPE edgekit_model_memory_bytes gauge\nedgekit_model_memory_bytes{model="m"} 3\n' in text
    assert gauges_of(object()) == {}
