"""A model of EleutherAI's lm-evaluation-harness: any of its tasks on a row of the matrix, be it base, expert or dispatched system.

Every request is routed by its context as a prompt of ours would be (rows.py), so a dispatcher reads what the harness asks. This
module needs the extra `[lm-eval]`; `svf-rl harness` runs it.

Source: lm_eval/api/model.py and lm_eval/models/huggingface.py of lm-eval 0.4.13.
Differs from the source (HFLM there):
1. Prompts are encoded as in training: the base's chat template wraps the context, where it has one.
2. Where a token would reach across the end of the context, context and continuation are encoded apart.
3. Of a whole text its own tokens are predicted, after the end token; not one that the tokenizer puts before them.
4. An answer is written to its limit and cut at the first stop text; settings of generation that our sampler has not are refused.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, make_table
from torch import Tensor

from svf_rl.base.load import Base
from svf_rl.errors import UserError
from svf_rl.evaluate.rows import Row
from svf_rl.rollout.sampler import Sampling, draw_seed, sample

__all__ = ["HarnessModel", "evaluate", "make_table"]

Pair = tuple[list[int], list[int]]
Score = tuple[float, bool]
MAX_TOKENS = 128  # where a task does not say
KNOWN = {"until", "max_gen_toks", "do_sample", "temperature"}


class HarnessModel(TemplateLM):
    """The row's answers and likelihoods. rows: texts that are run at a time."""

    def __init__(self, base: Base, row: Row, rows: int = 32, seed: int = 0) -> None:
        super().__init__()
        self.base, self.row, self.rows, self.seed = base, row, rows, seed

    @property
    def eot_token_id(self) -> int:
        return min(self.base.codec.stop_ids)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self.base.codec.encode(string) if add_special_tokens is False else self.base.codec.prompt(string)

    def _encode_pair(self, context: str, continuation: str) -> Pair:
        """Ids of both; blanks at the end of the context are the continuation's, as the harness has it."""
        kept = context.rstrip() or context
        codec, tail = self.base.codec, context[len(kept) :] + continuation
        before, whole = codec.prompt(kept), codec.prompt(kept + tail)
        return before, whole[len(before) :] if whole[: len(before)] == before else codec.encode(tail)

    def _loglikelihood_tokens(self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any) -> list[Score]:
        return self._scores([context for (context, _), _, _ in requests], [(before, after) for _, before, after in requests])

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts, in windows of the base's context; every token is predicted once."""
        texts = [request.args[0] for request in requests]
        windows = [list(self._windows(text)) for text in texts]
        owners = [i for i, own in enumerate(windows) for _ in own]
        sums = [0.0] * len(texts)
        scores = self._scores([texts[i] for i in owners], [pair for own in windows for pair in own])
        for i, (logp, _) in zip(owners, scores, strict=True):
            sums[i] += logp
        return sums

    def _windows(self, text: str) -> Iterator[Pair]:
        ids = self.base.codec.encode(text)
        return map(make_disjoint_window, get_rolling_token_windows(ids, self.eot_token_id, self.base.context, 1))

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The answers, each up to the first of its stop texts."""
        contexts, settings = zip(*(request.args for request in requests), strict=True)
        samplings = [sampling_of(one, self.rows) for one in settings]
        answers = [""] * len(requests)
        for part in self.row.route(contexts):
            with part.within():
                for sampling in dict.fromkeys(samplings[i] for i in part.indices):
                    chosen = [i for i in part.indices if samplings[i] == sampling]
                    for i, text in zip(chosen, self._write(sampling, contexts, chosen), strict=True):
                        answers[i] = cut(text, settings[i].get("until") or [])
        return answers

    def _write(self, sampling: Sampling, contexts: Sequence[str], chosen: Sequence[int]) -> list[str]:
        room = self.base.context - sampling.max_tokens
        if room < 1:
            raise UserError(
                f"max_gen_toks={sampling.max_tokens} leaves no room in the base's context of {self.base.context}; lower it"
            )
        prompts = [self.base.codec.prompt(contexts[i])[-room:] for i in chosen]
        completions = sample(self.base, prompts, sampling, [draw_seed(self.seed, i) for i in chosen])
        return [self.base.codec.decode(completion.ids) for completion in completions]

    def _scores(self, contexts: Sequence[str], pairs: Sequence[Pair]) -> list[Score]:
        """Of each pair the log-likelihood of the second part after the first, and whether it is the greedy answer."""
        scores: list[Score] = [(0.0, True)] * len(pairs)
        for part in self.row.route(contexts) if contexts else []:
            with part.within():
                order = sorted(part.indices, key=lambda i: -sum(map(len, pairs[i])))
                for start in range(0, len(order), self.rows):
                    chosen = order[start : start + self.rows]
                    for i, found in zip(chosen, score(self.base, [pairs[i] for i in chosen]), strict=True):
                        scores[i] = found
        return scores


def evaluate(model: HarnessModel, tasks: list[str], include: str | None, shots: int | None, limit: int | None) -> dict[str, Any]:
    """The harness's results. UserError for a task that it does not know. include: a folder of tasks, instead of the harness's."""
    manager = TaskManager(include_path=include, include_defaults=include is None)
    if unknown := [name for name in tasks if not manager.match_tasks([name])]:
        known = f"{include!r} has {', '.join(manager.all_tasks)}" if include else "`lm-eval ls tasks` names all"
        raise UserError(f"the harness knows no task {unknown[0]!r}; {known}")
    how = {"task_manager": manager, "num_fewshot": shots, "limit": limit, "log_samples": False}
    found: dict[str, Any] = simple_evaluate(model, tasks=tasks, **how)
    return found


@torch.no_grad()
def score(base: Base, pairs: Sequence[Pair]) -> list[Score]:
    """One batch of `_scores`; of what is longer than the context the end counts."""
    rows = [torch.tensor([*before, *after][-base.context - 1 :]) for before, after in pairs]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(base.device)
    hidden = base.hidden(ids[:, :-1], use_cache=False)
    return [_of_one(base.logits, hidden[i], row, len(pairs[i][1])) for i, row in enumerate(rows)]


def _of_one(head: Callable[[Tensor], Tensor], hidden: Tensor, ids: Tensor, count: int) -> Score:
    n = min(count, len(ids) - 1)
    target = ids[len(ids) - n :].to(hidden.device)
    logp = head(hidden[len(ids) - n - 1 : len(ids) - 1]).log_softmax(-1)
    return float(logp.gather(-1, target[:, None]).sum()), bool((logp.argmax(-1) == target).all())


def sampling_of(settings: dict[str, Any], rows: int) -> Sampling:
    """How to write what a task asks for. UserError for a setting that the sampler has not."""
    if unknown := sorted(settings.keys() - KNOWN):
        raise UserError(f"cannot generate with {unknown[0]}={settings[unknown[0]]!r}; tasks may set {', '.join(sorted(KNOWN))}")
    temperature = float(settings.get("temperature") or 0.0) if settings.get("do_sample") else 0.0
    return Sampling(int(settings.get("max_gen_toks") or MAX_TOKENS), temperature, rows)


def cut(text: str, stops: str | Sequence[str]) -> str:
    """The text up to the first of the stop texts."""
    ends = [text.find(stop) for stop in ([stops] if isinstance(stops, str) else stops) if stop and stop in text]
    return text[: min(ends)] if ends else text
