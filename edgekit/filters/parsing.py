"""Parses filters with lark; a text that is no filter is an error with a caret below the place."""

from __future__ import annotations

import difflib
import functools
import re
import unicodedata

from lark import Lark, Token, Transformer, UnexpectedCharacters, UnexpectedEOF, UnexpectedInput, UnexpectedToken, v_args
from lark.exceptions import VisitError

from edgekit.bundle.manifest import NAME_PATTERN
from edgekit.errors import SettingsError
from edgekit.filters.values import (
    FLAGS,
    GROUP,
    INDEXED_FIELDS,
    MODEL_FIELDS,
    NONE,
    ORDER,
    ORDERED_FIELDS,
    PLAIN_FIELDS,
    All,
    Any,
    Compare,
    Field,
    Filter,
    Flag,
    Group,
    Not,
    OneOf,
)

MAX_CHARACTERS = 4000
MAX_DEPTH = 40
MAX_COMPARISONS = 200
EXAMPLE = "target == raspberry-pi-4 and label.site in (north, west) and version(digits) < 2.0 and online"

GRAMMAR = r"""
?start: disjunction
?disjunction: conjunction ("or" conjunction)*   -> any_of
?conjunction: negation ("and" negation)*        -> all_of
?negation: "not" negation                       -> negated
         | "(" disjunction ")"
         | comparison
?comparison: field OPERATOR value               -> compare
           | field "in" "(" value ("," value)* ")"        -> one_of
           | field "not" "in" "(" value ("," value)* ")"  -> none_of
           | field                              -> flag
field: WORD                                     -> plain
     | WORD "(" WORD ")"                        -> of_model
value: WORD | STRING
OPERATOR: "==" | "!=" | "<=" | ">=" | "<" | ">"
WORD: /[A-Za-z0-9_][A-Za-z0-9_.:+-]*|-[0-9][0-9.]*/
STRING: /"[^"\\]*"/ | /'[^'\\]*'/
%ignore /\s+/
"""
_VERSION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,2}")
_AGE = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6})?[smhd]?")
_LIMIT = re.compile(rf"-?[0-9]{{1,15}}(\.[0-9]{{1,15}})?([eE][+-]?[0-9]{{1,3}})?|{_VERSION.pattern}")
_NAMES = {
    "OPERATOR": "==, !=, <, <=, > or >=",
    "WORD": "a word",
    "STRING": "a text in quotes",
    "LPAR": "an opening parenthesis",
    "RPAR": "a closing parenthesis",
}
_NAMES |= {"COMMA": "a comma", "$END": "the end"}


class _FilterError(Exception):
    """A fault at one place of the text."""

    def __init__(self, message: str, column: int) -> None:
        super().__init__(message)
        self.column = column


def parse_filter(text: str) -> Filter:
    """Parse a filter.

    Args:
        text: For example `EXAMPLE`. ``and`` binds closer than ``or``.

    Raises:
        SettingsError: the text is no filter; the message has the text, and a caret below the place of the fault.
    """
    line = " ".join(text.split()) if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)
    if len(line) > MAX_CHARACTERS:
        raise SettingsError(f"the filter has {len(line)} characters, at most {MAX_CHARACTERS} are read")
    try:
        _check_depth(line)
        tree = _parser().parse(line)
        found = _Build().transform(tree)
    except _FilterError as error:
        raise _explained(line, str(error), error.column) from error
    except VisitError as error:
        if not isinstance(error.orig_exc, _FilterError):
            raise
        raise _explained(line, str(error.orig_exc), error.orig_exc.column) from error
    except UnexpectedInput as error:
        raise _explained(line, _expected(error), _column(error, line)) from error
    return found


@functools.cache
def _parser() -> Lark:
    return Lark(GRAMMAR, parser="lalr", lexer="basic", maybe_placeholders=False)


@v_args(inline=True)
class _Build(Transformer[Token, Filter]):
    """Turns lark's tree into values, and checks the names of fields."""

    def any_of(self, *filters: Filter) -> Filter:
        return filters[0] if len(filters) == 1 else Any(filters)

    def all_of(self, *filters: Filter) -> Filter:
        return filters[0] if len(filters) == 1 else All(filters)

    def negated(self, one: Filter) -> Filter:
        return Not(one)

    def value(self, token: Token) -> Token:
        return token

    def plain(self, word: Token) -> tuple[Token, str, str]:
        kind, _, key = str(word).partition(".")
        return word, kind, key

    def of_model(self, word: Token, model: Token) -> tuple[Token, str, str]:
        return word, f"{word}()", str(model)

    def compare(self, field: tuple[Token, str, str], operator: Token, value: Token) -> Filter:
        checked = _field(field)
        if operator in ORDER and checked.kind not in ORDERED_FIELDS:
            raise _FilterError(f"{field[0]} has no order; compare it with == or !=", _at(operator))
        return Compare(checked, str(operator), _value(checked, value, str(operator)))

    def one_of(self, field: tuple[Token, str, str], *values: Token) -> Filter:
        checked = _field(field)
        return OneOf(checked, tuple(_value(checked, value, "==") for value in values))

    def none_of(self, field: tuple[Token, str, str], *values: Token) -> Filter:
        return Not(self.one_of(field, *values))

    def flag(self, field: tuple[Token, str, str]) -> Filter:
        word, kind, key = field
        if kind == f"{GROUP}()":
            return Group(key)
        if str(word) in FLAGS:
            return Flag(str(word))
        if kind.removesuffix("()") in (*PLAIN_FIELDS, *INDEXED_FIELDS, *MODEL_FIELDS):
            raise _FilterError(f"{word} is compared with nothing; write for example {word} == x", _at(word) + len(word))
        raise _FilterError(_unknown(str(word)), _at(word))


def _field(field: tuple[Token, str, str]) -> Field:
    word, kind, key = field
    if kind in PLAIN_FIELDS and not key:
        return Field(kind)
    if kind in INDEXED_FIELDS and key:
        return Field(kind, key)
    if kind.endswith("()") and (kind := kind.removesuffix("()")) in MODEL_FIELDS:
        if not NAME_PATTERN.fullmatch(key):
            raise _FilterError(f"{key!r} is no name of a model", _at(word))
        return Field(kind, key)
    if kind in INDEXED_FIELDS:
        raise _FilterError(f"{kind} needs a key, as in {kind}.site", _at(word))
    if kind in MODEL_FIELDS:
        raise _FilterError(f"{kind} needs a model, as in {kind}(digits)", _at(word))
    if str(word) in FLAGS:
        raise _FilterError(f"{word} is true or false and is not compared; write {word} or not {word}", _at(word))
    raise _FilterError(_unknown(str(word)), _at(word))


def _value(field: Field, token: Token, operator: str) -> str | None:
    text = str(token)[1:-1] if token.type == "STRING" else str(token)
    if text == NONE and token.type != "STRING" and field.kind not in ("name", "target"):
        if operator in ORDER:
            raise _FilterError(f"nothing is {operator} none", _at(token))
        return None
    if field.kind == "version" and not _VERSION.fullmatch(text):
        raise _FilterError(f"{text!r} is no version such as 2.0 or 1.2.3", _at(token))
    if field.kind == "seen" and not _AGE.fullmatch(text):
        raise _FilterError(f"{text!r} is no age such as 90s, 15m, 2h or 7d", _at(token))
    if field.kind == "fact" and operator in ORDER and not _LIMIT.fullmatch(text):
        raise _FilterError(f"{text!r} is no number and no version such as 2.3 or 1.2.3", _at(token))
    return text


def _unknown(word: str) -> str:
    models, keys = (f"{name}(MODEL)" for name in MODEL_FIELDS), (f"{name}.KEY" for name in INDEXED_FIELDS)
    known = [*PLAIN_FIELDS, *keys, *models, f"{GROUP}(NAME)", *FLAGS]
    first = re.split(r"[.(]", word)[0]
    near = difflib.get_close_matches(first, [re.split(r"[.(]", name)[0] for name in known], n=1)
    hint = next(name for name in known if re.split(r"[.(]", name)[0] == near[0]) if near else ""
    return f"{word} is no field; did you mean {hint}?" if near else f"{word} is no field; fields are {', '.join(known)}"


def _at(token: Token) -> int:
    return (token.column or 1) - 1


def _check_depth(line: str) -> None:
    depth = 0
    for at, character in enumerate(line):
        depth += (character == "(") - (character == ")")
        if depth > MAX_DEPTH:
            raise _FilterError(f"more than {MAX_DEPTH} parentheses are open", at)
    words = re.findall(r"\b(?:and|or|not)\b|,", line)
    if len(words) > MAX_COMPARISONS:
        raise _FilterError(f"it has more than {MAX_COMPARISONS} parts", len(line))


def _expected(error: UnexpectedInput) -> str:
    if isinstance(error, UnexpectedCharacters):
        return f"{error.char!r} is not expected here"
    names = error.accepts if isinstance(error, UnexpectedToken) else set()
    options = sorted({_NAMES.get(name, name.lower()) for name in names})
    found = "the filter ends" if _ends(error) else f"{getattr(error, 'token', '')!s} stands"
    return f"{found} where {', '.join(options) or 'something else'} is expected"


def _ends(error: UnexpectedInput) -> bool:
    return isinstance(error, UnexpectedEOF) or (isinstance(error, UnexpectedToken) and error.token.type == "$END")


def _column(error: UnexpectedInput, line: str) -> int:
    return len(line) if _ends(error) or error.column < 1 else error.column - 1


def _explained(line: str, message: str, column: int) -> SettingsError:
    start = max(0, column - 60)
    shown = line[start : column + 60]
    blank = " " * sum(map(_cells, line[start:column]))
    return SettingsError(
        f"the filter cannot be read at character {column + 1}: {message}\n  {shown}\n  {blank}^",
        advice=f"Write for example '{EXAMPLE}'",
    )


def _cells(character: str) -> int:
    """Columns of a character in a terminal: wide ones have two, and marks that stand on another one have none."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
