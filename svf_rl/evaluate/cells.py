"""One cell of the matrix: what one row answered in one column, kept on disk under a hash of all that decides it.

A cell is reused only where base, row, environment (id, settings, questions), split, size, decoding and the program's version are
identical, so an interrupted evaluation goes on where it was and nothing stale is ever read.

    KL(base || row), nats per token   of the base's own answers to the column's questions, over the whole vocabulary
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from svf_rl import __version__
from svf_rl.base import corpus
from svf_rl.base.load import Base
from svf_rl.base.pretrain import next_token_loss
from svf_rl.errors import FaultyRun
from svf_rl.evaluate.rows import Part, Row
from svf_rl.files import write_json
from svf_rl.rollout.episodes import EnvConfig, make_env, play, prompts_of, split_size
from svf_rl.rollout.sampler import Sampling, draw_seed
from svf_rl.types import Episode

HUMAN = "human"
BATCH = 16


@dataclass(frozen=True)
class Decoding:
    """temperature 0 is greedy; samples: answers to each question."""

    temperature: float = 0.0
    samples: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Column:
    """An environment's questions, or (env is None) held-out human text. texts: the prompts by index, or the passages."""

    name: str
    env: Any
    id: str
    max_tokens: int
    split: str
    texts: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """One answer as it is kept; `own` marks the tokens of `ids` that are the model's."""

    question: int
    reward: float
    verdict: str
    prompt: str
    text: str
    ids: list[int]
    own: list[int]


@dataclass(frozen=True)
class Cell:
    """answers: of an environment.  nats, tokens: by passage of human text.  kl: to the base.  parts: who answered how many."""

    row: str
    column: str
    answers: tuple[Answer, ...] = ()
    nats: tuple[float, ...] = ()
    tokens: tuple[int, ...] = ()
    kl: float | None = None
    parts: Mapping[str, int] = field(default_factory=dict)


def environment_column(config: EnvConfig, split: str, size: int) -> Column:
    """The first `size` questions of a split, or all if there are fewer. FaultyRun for an environment that cannot ask them all."""
    env = make_env(config)
    n = split_size(env, split, size)
    prompts = tuple(prompts_of(env, split, range(n)))
    if len(prompts) < n:
        raise FaultyRun(f"{config.name} could not ask {n - len(prompts)} of {n} questions; the reasons are above")
    return Column(config.name, env, config.id, config.max_tokens, split, prompts, config.settings)


def human_column(size: int) -> Column:
    """The held-out passages of svf_rl/base/corpus.py: the base has not been trained on them."""
    return Column(HUMAN, None, "svf_rl.base.corpus", 0, "held-out", tuple(corpus.human_text(held_out=True)[:size]))


def cell_key(base: Base, row: Row, column: Column, decoding: Decoding) -> str:
    """A hash of everything that decides a cell."""
    texts = hashlib.blake2b("\0".join(column.texts).encode("utf-8", "replace"), digest_size=16).hexdigest()
    environment = [column.id, dict(column.settings), column.split, column.max_tokens, len(column.texts), texts]
    what = [__version__, base.fingerprint, row.name, row.digest, environment, asdict(decoding)]
    return hashlib.blake2b(json.dumps(what, sort_keys=True, default=str).encode(), digest_size=12).hexdigest()


def cached(folder: Path, key: str, make: Callable[[], Cell]) -> Cell:
    """The cell on disk, or a new one, which is written there. A file that cannot be read counts as none."""
    path = folder / f"{key}.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        answers = tuple(Answer(**one) for one in fields["answers"])
        return Cell(**{**fields, "answers": answers, "nats": tuple(fields["nats"]), "tokens": tuple(fields["tokens"])})
    except (OSError, ValueError, KeyError, TypeError):
        cell = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(cell))
    return cell


def measure(base: Base, row: Row, column: Column, decoding: Decoding, before: Cell | None, rows: int = 128) -> Cell:
    """One row in one column. before: the base's cell, for the divergence; rows: completions written at a time."""
    if column.env is None:
        return _read(base, row, column)
    texts = column.texts
    parts = row.route(texts)
    sampling = Sampling(column.max_tokens, decoding.temperature, rows)
    found: dict[int, list[Answer]] = {}
    for part in parts:
        asked = [i for i in part.indices for _ in range(decoding.samples)]
        seeds = [draw_seed(decoding.seed, i, j) for i in part.indices for j in range(decoding.samples)]
        with part.within():
            episodes = play(base, column.env, column.split, asked, sampling, seeds)
        for i, episode in zip(asked, episodes, strict=True):
            found.setdefault(i, []).extend([_kept(i, episode)] if episode else [])
    answers = tuple(answer for i in range(len(texts)) for answer in found[i])
    kl = divergence(base, parts, before.answers) if before else 0.0
    return Cell(row.name, column.name, answers, kl=kl, parts=counted(parts))


def counted(parts: Sequence[Part]) -> dict[str, int]:
    """How many of the column's texts each of them answered or read."""
    counts: dict[str, int] = {}
    for part in parts:
        counts[part.label] = counts.get(part.label, 0) + len(part.indices)
    return counts


def _kept(question: int, e: Episode) -> Answer:
    return Answer(question, e.reward, e.verdict, e.prompt, e.text, e.ids, [int(own) for own in e.own])


@torch.no_grad()
def _read(base: Base, row: Row, column: Column) -> Cell:
    """The next-token loss on every passage, each under what the row takes for it."""
    nats, tokens = [0.0] * len(column.texts), [0] * len(column.texts)
    parts = row.route(column.texts)
    for part in parts:
        with part.within():
            for i in part.indices:
                ids = torch.tensor([base.codec.prompt(column.texts[i])[: base.context + 1]], device=base.device)
                tokens[i] = ids.shape[1] - 1
                nats[i] = next_token_loss(base.model, ids).item() * tokens[i]
    return Cell(row.name, column.name, nats=tuple(nats), tokens=tuple(tokens), parts=counted(parts))


@torch.no_grad()
def divergence(base: Base, parts: Sequence[Any], answers: Sequence[Answer]) -> float:
    """KL(base || row) in nats, mean over the tokens of the base's answers. parts: of the column's prompts."""
    total, count = 0.0, 0
    for part in parts:
        mine = [a for a in answers if a.question in set(part.indices)]
        for i in range(0, len(mine), BATCH):
            batch = mine[i : i + BATCH]
            reference = _log_probabilities(base, batch)
            with part.within():
                adapted = _log_probabilities(base, batch)
            total += float((reference.exp() * (reference - adapted)).sum())
            count += len(reference)
    return total / count if count else 0.0


def _log_probabilities(base: Base, answers: Sequence[Answer]) -> torch.Tensor:
    """[own tokens, vocabulary]: what is predicted where the answers' own tokens stand."""
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad([torch.tensor(a.ids) for a in answers], batch_first=True).to(base.device)
    own = pad([torch.tensor(a.own) for a in answers], batch_first=True).bool().to(base.device)
    hidden = base.hidden(ids[:, :-1], use_cache=False)
    return torch.log_softmax(base.logits(hidden[own[:, 1:]]), -1)
