from tests.machines.diagrams import PAGE, page


def test_the_page_of_states_is_what_the_tables_say():
    """A row that changes changes the page; run python -m tests.machines.diagrams."""
    assert PAGE.read_text(encoding="utf-8") == page()
