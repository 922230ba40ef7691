"""How figures are said."""

from __future__ import annotations

from pipeline.words import headline


def test_shots_stand_in_their_order_also_where_a_record_has_them_by_the_alphabet():
    metrics = {f"features/all/{shots}_shot": shots / 100 for shots in (1, 5, 10, 25, 100)}
    said = "1-shot 1.0%  5-shot 5.0%  10-shot 10.0%  25-shot 25.0%  100-shot 100.0%"
    assert headline(metrics) == headline(dict(sorted(metrics.items()))) == said
