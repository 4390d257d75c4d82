"""Histograms of losses."""

from svf_rl.studies.losses import histograms
from svf_rl.studies.training import History


def test_histograms_count_every_batch_once() -> None:
    history = History(losses=[5.0, 4.0, 4.5, 3.0, 2.0, 3.5], valid=[4.0, 3.0])
    rows = histograms(history)
    assert [sum(row["batches"] for row in rows if row["epoch"] == epoch) for epoch in (1, 2)] == [3, 3]
    for epoch, losses in ((1, history.losses[:3]), (2, history.losses[3:])):
        for loss in losses:
            assert any(row["epoch"] == epoch and row["batches"] and row["from"] <= loss <= row["to"] for row in rows)
