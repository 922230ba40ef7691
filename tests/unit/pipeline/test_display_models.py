"""The tables of models beside each other."""

import io

from rich.console import Console

from pipeline.display_models import choice_table, scaling_table, summary_table


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


def test_accuracies_by_compute_are_in_percent_and_what_is_not_known_is_left_empty():
    rows = [
        {"network": "ViT-64x4/4", "train_images": 12_544, "images_seen": 160_000, "exaflops": 1.934e-6, "models": 3,
         "finetuned": 0.76803, "finetuned_deviation": 0.0035, "finetuned_models": 3, "fewshot": None,
         "fewshot_deviation": None, "fewshot_models": 0},
        {"network": "ViT-B/16", "train_images": None, "images_seen": None, "exaflops": None, "models": 1,
         "finetuned": 0.9, "finetuned_deviation": None, "finetuned_models": 1, "fewshot": None,
         "fewshot_deviation": None, "fewshot_models": 0},
    ]  # fmt: skip
    lines = shown(scaling_table(rows)).splitlines()
    first, second = (next(line for line in lines if name in line) for name in ("ViT-64x4/4", "ViT-B/16"))
    assert [cell.strip() for cell in first.strip("│").split("│")] == [
        "ViT-64x4/4", "12,544", "160,000", "1.93e-06", "76.80 ± 0.35", "3"
    ]  # fmt: skip
    assert [cell.strip() for cell in second.strip("│").split("│")] == ["ViT-B/16", "", "", "", "90.00", "1"]
    assert not any("few-shot" in line for line in lines)
    alone = shown(scaling_table([{**rows[1], "fewshot": 0.5}]))
    assert "few-shot" in alone
    assert "models" not in alone
