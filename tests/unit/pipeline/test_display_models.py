"""The tables of models beside each other."""

import io

from rich.console import Console

from pipeline.display_models import choice_table, summary_table


def shown(table) -> str:
    console = Console(width=100, file=io.StringIO())
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_means_and_their_errors_have_as_many_decimals():
    rows = [
        {"group": "a", "models": 3, "test/accuracy": 0.76803, "test/accuracy ±": 0.0035, "test/loss": 0.599,
         "test/loss ±": 0.009091},
        {"group": "b", "models": 1, "test/accuracy": 0.5, "test/accuracy ±": None, "test/loss": 12.3456,
         "test/loss ±": None},
    ]  # fmt: skip
    text = shown(summary_table(rows))
    assert "76.80 ± 0.35" in text
    assert "0.599 ± 0.009" in text
    assert "50.00 " in text
    assert "12.35 " in text
    assert "accuracy, %" in text


def test_what_was_chosen_from_is_shown_with_the_figure_that_decided():
    rows = [
        {"stage": "tuned-lr-0_1", "validation/loss": 0.25, "chosen": True},
        {"stage": "tuned-lr-0_3", "validation/loss": 1.5, "chosen": False},
    ]
    text = shown(choice_table(rows))
    assert "tuned-lr-0_1" in text
    assert "0.25" in text
    assert "loss" in text
