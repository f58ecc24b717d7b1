import math

from service.load.markdown import milliseconds, table


def test_a_table() -> None:
    assert table(["what", "ms"], [["a", "1"], ["b", "2"]]).splitlines() == [
        "| what | ms |",
        "| :--- | ---: |",
        "| a | 1 |",
        "| b | 2 |",
    ]


def test_milliseconds_have_three_figures() -> None:
    assert [milliseconds(it) for it in (0.0012345, 0.04567, 0.5, 12.3456)] == ["1.23", "45.7", "500", "12346"]
    assert milliseconds(math.nan) == "-"
