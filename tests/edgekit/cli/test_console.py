"""Tables on the terminal."""

from edgekit.cli.common.console import print_table


def test_columns_of_numbers_end_at_the_same_place(capsys):
    """Numbers are right-aligned, also with thousands separated and where a dash stands for no value; words are not."""
    print_table(["bytes", "cost", "version", "name"], [[945, "1,450", "1.0.0", "a"], ["-", "2.9e+03", "-", "bb"]])
    assert capsys.readouterr().out.splitlines() == [
        "bytes     cost  version  name",
        "  945    1,450  1.0.0    a",
        "    -  2.9e+03  -        bb",
    ]
