"""The grammar of filters: what is read, and the caret below what is not."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import SettingsError
from edgekit.filters import All, Any, Compare, Flag, Group, Not, OneOf, parse_filter
from edgekit.filters.parsing import EXAMPLE
from edgekit.filters.values import Field, fields_of, groups_of

TARGET, SITE, DIGITS = Field("target"), Field("label", "site"), Field("version", "digits")


def test_the_example_is_read() -> None:
    """Comparisons, lists, versions and flags are joined by `and`."""
    assert parse_filter(EXAMPLE) == All(
        (
            Compare(TARGET, "==", "raspberry-pi-4"),
            OneOf(SITE, ("north", "west")),
            Compare(DIGITS, "<", "2.0"),
            Flag("online"),
        )
    )


def test_and_binds_closer_than_or_and_not_closer_than_both() -> None:
    """Parentheses change that."""
    a, b, c = Flag("online"), Flag("waiting"), Group("x")
    assert parse_filter("online or waiting and group(x)") == Any((a, All((b, c))))
    assert parse_filter("(online or waiting) and group(x)") == All((Any((a, b)), c))
    assert parse_filter("not online and waiting") == All((Not(a), b))
    assert parse_filter("not (online or waiting)") == Not(Any((a, b)))
    assert parse_filter("label.site not in (a, 'b c')") == Not(OneOf(SITE, ("a", "b c")))


def test_words_that_only_begin_like_the_grammar_are_words() -> None:
    """`android`, `india` and `notes` are values; the words of the grammar need quotes."""
    assert parse_filter("target == android or label.site == india") == Any(
        (Compare(TARGET, "==", "android"), Compare(SITE, "==", "india"))
    )
    assert parse_filter('label.site == "and"') == Compare(SITE, "==", "and")
    assert parse_filter("label.site == none") == Compare(SITE, "==", None)
    assert parse_filter("label.site in ('none', none)") == OneOf(SITE, ("none", None))
    assert parse_filter("name == none") == Compare(Field("name"), "==", "none"), "every device has a name"


@pytest.mark.parametrize(
    ("text", "message", "caret"),
    [
        ("target == and label.site", "and stands where a text in quotes, a word is expected", 10),
        ("target = pi", "'=' is not expected here", 7),
        ("target ==", "the filter ends where", 9),
        ("", "the filter ends where", 0),
        ("(online", "the filter ends where", 7),
        ("online)", ") stands where the end is expected", 6),
        ("name == a b", "b stands where and, or, the end is expected", 10),
        ("versoin(digits) < 2", "did you mean version(MODEL)?", 0),
        ("online and labels.x == 1", "did you mean label.KEY?", 11),
        ("zzz == 1", "fields are name, target", 0),
        ("version < 2.0", "version needs a model", 0),
        ("label == x", "label needs a key", 0),
        ("label.site > 3", "label.site has no order", 11),
        ("version(digits) < two", "'two' is no version", 18),
        ("version(digits) < none", "nothing is < none", 18),
        ("seen > soon", "'soon' is no age", 7),
        ("fact.cores < many", "'many' is no number and no version", 13),
        ("fact.cores < nan", "'nan' is no number", 13),
        ("fact.cores > '²'", "'²' is no number", 13),
        ("online == true", "online is true or false", 0),
        ("target", "target is compared with nothing", 6),
        ("label.site in ()", ") stands where", 15),
        ("name in (pi-1", "the filter ends where a closing parenthesis, a comma is expected", 13),
        ("(" * 50 + "online", "more than 40 parentheses", 40),
        ("not " * 250 + "online", "more than 200 parts", 1006),
    ],
)
def test_a_caret_stands_below_the_place_of_the_fault(text: str, message: str, caret: int) -> None:
    """The message says what was found and expected, and which character it is about."""
    with pytest.raises(SettingsError) as caught:
        parse_filter(text)
    first, shown, below = str(caught.value).split("\n")
    assert message in first
    assert f"at character {caret + 1}:" in first
    assert len(below) - 3 == min(caret, 60)
    assert below.strip() == "^"
    if caret < len(text):
        assert shown[len(below) - 1] == text[caret]
    assert EXAMPLE in caught.value.advice


def test_a_caret_counts_the_columns_of_a_terminal() -> None:
    """Characters of Chinese and Japanese are two columns wide, and an accent that combines has none."""
    for text, columns in (('name == "日本" ^', 15), ('name == "u\u0308" ^', 12)):
        with pytest.raises(SettingsError) as caught:
            parse_filter(text)
        below = str(caught.value).split("\n")[2]
        assert below == "  " + " " * columns + "^"


def test_a_long_text_is_refused_and_control_characters_are_blanks() -> None:
    """No text of a user reaches the terminal as it is."""
    with pytest.raises(SettingsError, match="5000 characters"):
        parse_filter("x" * 5000)
    assert parse_filter("online\n and\twaiting") == All((Flag("online"), Flag("waiting")))


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=string.ascii_lowercase + "()<>=!.,'\" 019_-\x1b\n", max_size=60))
def test_any_text_is_a_filter_or_an_error_with_a_caret(text: str) -> None:
    """Nothing else is raised, whatever is typed."""
    said = ""
    try:
        parse_filter(text)
    except SettingsError as error:
        said = str(error)
    assert not said or said.endswith("^")
    assert "\x1b" not in said


def test_groups_and_fields_of_a_filter_are_found_at_every_depth() -> None:
    """For resolving groups, and for naming what matches nobody."""
    found = parse_filter("group(a) and not (group(b) or label.site in (x, y)) and target == pi")
    assert groups_of(found) == {"a", "b"}
    assert fields_of(found) == [(SITE, ("x", "y")), (TARGET, ("pi",))]
