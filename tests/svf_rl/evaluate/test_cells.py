"""Cells against transformers' own generation and a naive divergence; they are reused only where nothing differs."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch

from svf_rl.adapters import open_adapter
from svf_rl.base.load import Base, fingerprint
from svf_rl.evaluate.cells import Cell, Column, Decoding, cached, cell_key, measure
from svf_rl.evaluate.rows import Part, Row, base_row, composed_rows, file_row
from svf_rl.progress import Progress


def naive_kl(base: Base, path: Path, before: Cell) -> float:
    """One answer at a time, whole sequences, the library's own head."""
    adapter, _ = open_adapter(path, base)
    total, count = 0.0, 0
    for answer in before.answers:
        ids, own = torch.tensor([answer.ids]), torch.tensor(answer.own[1:]).bool()
        p = base.model(ids).logits[0, :-1][own].log_softmax(-1)
        adapter.install()
        q = base.model(ids).logits[0, :-1][own].log_softmax(-1)
        adapter.uninstall()
        total, count = total + torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum").item(), count + len(p)
    return total / count


@torch.no_grad()
def test_the_divergence_is_that_of_the_naive_way(tiny_base: Base, column: Column, save_expert_of: Callable[..., Path]) -> None:
    path = save_expert_of("one")
    before = measure(tiny_base, base_row(), column, Decoding(), None)
    after = measure(tiny_base, file_row("one", path, tiny_base), column, Decoding(), before)
    assert before.kl == 0.0
    assert after.kl == pytest.approx(naive_kl(tiny_base, path, before), rel=1e-4)
    assert after.parts == {"one": 20}
    assert [a.text for a in after.answers] != [a.text for a in before.answers]


def test_who_reads_a_text_is_counted_as_who_answers_a_question(tiny_base: Base) -> None:
    """Every text is read once by its own part: the base's loss, and log of the vocabulary under a model that knows nothing."""
    texts = ("some words", "other words", "more")

    def route(prompts: Sequence[str]) -> list[Part]:
        return [Part([0, 2], "base", nullcontext), Part([1], "flat", partial(flat, tiny_base))]

    whole = measure(tiny_base, base_row(), Column("human", None, "texts", 0, "held-out", texts), Decoding(), None)
    split = measure(tiny_base, Row("x", "x", route), Column("human", None, "texts", 0, "held-out", texts), Decoding(), None)
    assert (whole.parts, split.parts) == ({"base": 3}, {"base": 2, "flat": 1})
    assert (split.nats[0], split.nats[2]) == (whole.nats[0], whole.nats[2])
    vocabulary = tiny_base.model.config.vocab_size
    assert split.nats[1] == pytest.approx(split.tokens[1] * math.log(vocabulary), rel=1e-5)


@contextmanager
def flat(base: Base) -> Iterator[None]:
    """Within it every token is as likely as any other."""
    hook = base.model.lm_head.register_forward_hook(lambda module, args, scores: torch.zeros_like(scores))
    try:
        yield
    finally:
        hook.remove()


def test_the_base_is_untouched_byte_for_byte(tiny_base: Base, column: Column, save_expert_of: Callable[..., Path]) -> None:
    files = {name: save_expert_of(name, seed, f"toys:{name}") for seed, name in enumerate(("one", "two"))}
    before = measure(tiny_base, base_row(), column, Decoding(), None)
    for row in [file_row("one", files["one"], tiny_base), *composed_rows(files, tiny_base, [], Progress(quiet=True))]:
        measure(tiny_base, row, column, Decoding(), before)
    assert fingerprint(tiny_base.model) == tiny_base.fingerprint
    assert measure(tiny_base, base_row(), column, Decoding(), None) == before


def test_sampled_answers_are_k_of_each_question(tiny_base: Base, column: Column) -> None:
    cell = measure(tiny_base, base_row(), column, Decoding(1.0, 3), None)
    assert [a.question for a in cell.answers] == [i for i in range(20) for _ in range(3)]
    assert len({a.text for a in cell.answers if a.question == 0}) > 1


def test_a_key_has_everything_that_decides_a_cell(tiny_base: Base, column: Column, save_expert_of: Callable[..., Path]) -> None:
    row, greedy = base_row(), Decoding()
    others = [
        (dataclasses.replace(tiny_base, fingerprint="x"), row, column, greedy),
        (tiny_base, file_row("base", save_expert_of("one"), tiny_base), column, greedy),
        (tiny_base, file_row("base", save_expert_of("one", 1), tiny_base), column, greedy),
        *((tiny_base, row, column, decoding) for decoding in (Decoding(1.0), Decoding(0.0, 2), Decoding(0.0, 1, 1))),
        (tiny_base, row, dataclasses.replace(column, id="toys:toys/Letter-v1"), greedy),
        (tiny_base, row, dataclasses.replace(column, settings={"rows": 5}), greedy),
        (tiny_base, row, dataclasses.replace(column, split="valid"), greedy),
        (tiny_base, row, dataclasses.replace(column, max_tokens=4), greedy),
        (tiny_base, row, dataclasses.replace(column, texts=column.texts[:-1]), greedy),
        (tiny_base, row, dataclasses.replace(column, texts=(*column.texts[:-1], "another question")), greedy),
    ]
    keys = [cell_key(*one) for one in [(tiny_base, row, column, greedy), *others]]
    assert len(set(keys)) == len(keys)
    assert cell_key(tiny_base, base_row(), column, greedy) == keys[0]


def test_a_cell_is_read_back_the_same_and_made_anew_when_damaged(tiny_base: Base, column: Column, tmp_path: Path) -> None:
    made: list[Cell] = []

    def make() -> Cell:
        made.append(measure(tiny_base, base_row(), column, Decoding(), None))
        return made[-1]

    assert cached(tmp_path / "cells", "a", make) == cached(tmp_path / "cells", "a", make)
    assert len(made) == 1
    path = tmp_path / "cells" / "a.json"
    path.write_bytes(path.read_bytes()[:-50])
    assert cached(tmp_path / "cells", "a", make) == made[0]
    assert len(made) == 2
