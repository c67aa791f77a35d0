"""Evidence: what signed fields say, and what a device makes of its runtime version."""

import msgspec
import pytest

from edgekit.bundle.evidence import (
    MAX_EVIDENCE,
    TARGET_FIELD,
    Evidence,
    Standing,
    equal_versions,
    made_with,
    parse_evidence,
    standing,
    standing_text,
    with_evidence,
)
from tests.simulators.bundles import manifest_of

ARM, X86 = "aarch64", "x86_64"
MADE = "onnxruntime 1.31.1"


def bundle(runtime="onnxruntime", tools=None):
    tools = {"onnxruntime": "1.31.1", "ai-edge-litert": "2.3.0"} if tools is None else tools
    return msgspec.structs.replace(manifest_of("digits", "1.0.0"), runtime=runtime, tools=tools)


def evidence(version="1.32.0", outcome="equal", arch=ARM, against=MADE, report="a" * 64, samples=200):
    return Evidence("onnxruntime", version, arch, outcome, against, report, samples)


def test_the_version_that_a_bundle_was_made_with_is_that_of_its_own_runtime():
    """A manifest names every tool; only the package of the bundle's runtime counts."""
    assert str(made_with(bundle())) == MADE
    assert str(made_with(bundle("litert"))) == "ai-edge-litert 2.3.0"
    assert made_with(bundle(tools={})) is None


@pytest.mark.parametrize(
    ("running", "known", "expected"),
    [
        (MADE, [], Standing.PROVEN),
        ("onnxruntime 1.32.0", [], Standing.UNPROVEN),
        ("onnxruntime 1.32.0", [evidence()], Standing.PROVEN),
        ("onnxruntime 1.32.0", [evidence(outcome="within-budget")], Standing.PROVEN),
        ("onnxruntime 1.32.0", [evidence(arch=X86)], Standing.UNPROVEN),
        ("onnxruntime 1.32.0", [evidence(outcome="worse")], Standing.REFUTED),
        ("onnxruntime 1.32.0", [evidence(outcome="failed")], Standing.REFUTED),
        ("onnxruntime-gpu 1.31.1", [evidence(version="1.31.1")], Standing.UNPROVEN),
        ("", [], Standing.PROVEN),
    ],
)
def test_evidence_counts_for_its_version_and_architecture(running, known, expected):
    """The version that a bundle was made with counts; another one only where it was compared on this architecture."""
    assert standing(bundle(), running, ARM, known) is expected


def test_a_bundle_that_names_no_version_is_not_judged():
    """Bundles of other tools say nothing, so a device cannot say that its version is another one."""
    assert standing(bundle(tools={}), "onnxruntime 9.9.9", ARM, []) is Standing.PROVEN


def test_equal_bits_hold_along_a_chain_and_for_one_architecture():
    """Two versions that both equal a third are equal; being within the budget is not being equal."""
    chain = [evidence("1.32.0"), evidence("1.30.0")]
    assert "onnxruntime 1.30.0" in equal_versions("onnxruntime 1.32.0", ARM, chain)
    assert equal_versions(MADE, ARM, []) == {MADE}
    assert MADE not in equal_versions("onnxruntime 1.32.0", X86, chain)
    assert MADE not in equal_versions("onnxruntime 1.32.0", ARM, [evidence(outcome="within-budget")])


def test_few_samples_do_not_make_versions_equal():
    """Golden samples alone are a handful; a device may still run the version, but a certificate needs more."""
    few = evidence(samples=199)
    assert standing(bundle(), "onnxruntime 1.32.0", ARM, [few]) is Standing.PROVEN
    assert MADE not in equal_versions("onnxruntime 1.32.0", ARM, [few])
    assert MADE in equal_versions("onnxruntime 1.32.0", ARM, [evidence(samples=200)])
    assert parse_evidence({"evidence": [{**msgspec.to_builtins(few), "samples": -1}]}) == ()


def test_a_later_outcome_replaces_the_earlier_one_of_the_same_version():
    """Other versions and architectures stay."""
    custom = {"name": "digits"}
    for one in (evidence(), evidence(arch=X86), evidence(outcome="worse", report="b" * 64)):
        custom |= with_evidence(custom, one)
    assert parse_evidence(custom) == (evidence(arch=X86), evidence(outcome="worse", report="b" * 64))
    assert custom["name"] == "digits"


def test_the_oldest_outcomes_go_where_there_are_too_many():
    """Metadata that devices fetch has a bound."""
    custom = {}
    for number in range(MAX_EVIDENCE + 3):
        custom |= with_evidence(custom, evidence(version=f"1.{number}.0"))
    found = parse_evidence(custom)
    assert len(found) == MAX_EVIDENCE
    assert found[0].version == "1.3.0"


@pytest.mark.parametrize("item", [None, "equal", {}, {"runtime": 3}, {"outcome": "splendid"}, {"report": "zz"}])
def test_entries_that_cannot_be_used_are_skipped(item):
    """A newer edgekit may write others; one of them hides none of the rest."""
    sound = msgspec.to_builtins(evidence())
    item = {**sound, **item} if item and isinstance(item, dict) else item
    assert parse_evidence({TARGET_FIELD: [item, sound]}) == (evidence(),)
    assert parse_evidence({TARGET_FIELD: item}) == ()


def test_the_sentences_name_both_versions():
    """A person reads which version is here, and which one the bundle was made with."""
    for found in (Standing.UNPROVEN, Standing.REFUTED):
        text = standing_text(bundle(), "onnxruntime 1.32.0", found)
        assert "onnxruntime 1.32.0" in text
        assert MADE in text
