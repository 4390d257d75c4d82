"""Skip trigrams, the toy's heads, and the analysis of which head says what."""

from typing import Any

import torch

from svf_rl.studies import superposition as toy
from svf_rl.studies import trigrams


def drawn(rows: int = 2000) -> tuple[torch.Tensor, torch.Tensor]:
    return trigrams.draw(3, rows, torch.Generator().manual_seed(0))


def test_tokens_are_forced_as_a_reader_would() -> None:
    """Row by row: after an A that is open, the first B is followed by its C, and no A comes in between."""
    ids, forced = drawn(300)
    for row, marks in zip(ids.tolist(), forced.tolist(), strict=True):
        is_open = False
        for i, token in enumerate(row[1:], 1):
            if row[i - 1] in (1, 2, 3) and is_open and marks[i - 1]:
                assert token == row[i - 1] + 3
                is_open = False
                continue
            assert not (is_open and token == 0)
            is_open = is_open or token == 0
            assert marks[i] == (is_open and token in (1, 2, 3) and i < trigrams.LENGTH - 1)


def test_the_data_are_valid_and_faults_are_found() -> None:
    ids, forced = drawn(20000)
    assert trigrams.problems(ids, forced, 3, 1000) == []
    assert trigrams.problems(ids, forced, 3, 10**6) == ["a trigram is missing or rare"]
    broken = ids.clone()
    row, column = forced.nonzero()[0].tolist()
    broken[row, column + 1] = 0
    assert "a B is followed by another token than its C" in trigrams.problems(broken, forced, 3, 100)


def test_open_gates_are_plain_heads() -> None:
    ids, _ = drawn(8)
    plain, gated = toy.Heads(3, 2, False, 0), toy.Heads(3, 2, True, 0)
    assert gated.gates is not None
    with torch.no_grad():
        gated.gates.fill_(1.0)
    assert torch.equal(plain(ids), gated(ids))
    torch.testing.assert_close(plain.per_head(ids).sum(1), plain(ids))


def test_no_head_reads_the_future() -> None:
    ids, _ = drawn(8)
    changed = torch.cat([ids[:, :-1], (ids[:, -1:] + 1) % 8], 1)
    model = toy.Heads(3, 4, True, 1)
    assert torch.equal(model(ids)[:, :-1], model(changed)[:, :-1])


def test_a_head_that_says_a_trigram_alone_is_found() -> None:
    """Head 0 says C1 at B1 by hand and head 1 says nothing: trigram 1 has a head of its own, the others none."""
    ids, forced = drawn(500)

    class ByHand(toy.Heads):
        def per_head(self, ids: Any) -> Any:
            said = torch.zeros(len(ids), 2, ids.shape[1], 8)
            said[:, 0, :, 4] = (ids == 1).float()
            return said

    assert toy.solo_heads(ByHand(3, 2, False, 0), ids, forced, 3) == {1: [0], 2: [], 3: []}
