"""`svf-rl card`: measure the embedded base on every family and write its model card, README.md beside the weights.

Every figure has the command that reproduces it. The corpus, recipe and held-out loss come from what `svf-rl pretrain` left in
pretrain.json.
"""

import json
from pathlib import Path
from typing import Any

from svf_rl.base.corpus import HELD_OUT, MIX
from svf_rl.base.load import EMBEDDED, Base, BaseConfig, load_base
from svf_rl.config import CardConfig, read_config
from svf_rl.evaluate.compare import accuracy, answers
from svf_rl.evaluate.stats import Interval
from svf_rl.files import write_text
from svf_rl.progress import Progress
from svf_rl.rollout.episodes import graded, make_env
from svf_rl.rollout.sampler import Sampling

FAMILIES = ("math", "code", "classify", "hard_math", "list_code", "word_code", "new_classify", "which_task")


def run(configs: list[CardConfig], command: list[str]) -> None:
    for config in configs:
        base = load_base(BaseConfig())
        facts = json.loads((EMBEDDED / "pretrain.json").read_text())
        rows = [(name, *_measure(base, name, config.size)) for name in Progress().over(FAMILIES, "measuring")]
        path = EMBEDDED / "README.md"
        write_text(path, card(base, facts, rows, config.size))
        print(f"the model card is in {Path(path)}")


def _measure(base: Base, name: str, size: int) -> tuple[Interval, Interval]:
    env = read_config("evaluate", [f"env={name}"]).env
    greedy, sampled = (Sampling(env.max_tokens, temperature) for temperature in (0.0, 1.0))
    made = make_env(env)
    return accuracy(graded(answers(base, made, "test", size, greedy))), accuracy(graded(answers(base, made, "test", size, sampled)))


def card(base: Base, facts: dict[str, Any], rows: list[tuple[str, Interval, Interval]], size: int) -> str:
    """The model card as Markdown."""
    shape, loss = base.model.config, facts["human_loss"]
    table = "\n".join(f"| `{name}` | {greedy} | {sampled} |" for name, greedy, sampled in rows)
    mix = ", ".join(f"{kind.removeprefix('envs:svf/')} {weight}" for kind, weight in MIX.items())
    return f"""# The embedded base

A Llama of {base.model.num_parameters() / 1e6:.2f} M parameters ({shape.num_hidden_layers} layers, width {shape.hidden_size},
{shape.num_attention_heads} heads, feed-forward {shape.intermediate_size}, context {shape.max_position_embeddings},
tied embeddings) and a byte-level BPE of {shape.vocab_size} tokens, digits one token each. Stored in bfloat16, loaded in float32.
It is small on purpose: a training run takes minutes on a laptop. It is no general language model.

```python
AutoModelForCausalLM.from_pretrained("svf_rl/base/embedded")
AutoTokenizer.from_pretrained("svf_rl/base/embedded")
```

## How it was made

`svf-rl pretrain`, seed {facts["config"]["seed"]}: {facts["config"]["steps"]} steps, {facts["tokens"] / 1e6:.1f} M tokens,
{facts["seconds"] / 60:.0f} minutes on two CPU cores, Python {facts["python"]} (the human text is that version's).
The recipe is in `configs/pretrain.yaml` and `svf_rl/base/pretrain.py`, the loss curve in `loss.png`.

Corpus (`svf_rl/base/corpus.py`), documents by weight: {mix}. "human" is the Python language documentation and the docstrings and
source of the standard library; {HELD_OUT} % of its passages were held out. The families are generated; every question belongs to
one of pretrain, train, valid and test by the hash of its content.

**Habits.** The text answers each family in several ways, and the usual way is not the most often right: word problems with
the last step left out, functions as a half-done draft, notes by their last line. `envs/math.py`, `code.py` and `classify.py` give
the shares.

## What it can do

Held-out human text: {loss["nats_per_token"]:.3f} nats per token, {loss["bits_per_byte"]:.3f} bits per byte
({loss["tokens"]} tokens; printed by `svf-rl pretrain`).

Test questions, n = {size}, with 95 % intervals. `svf-rl evaluate env=<family> size={size}` gives the greedy column, with
`temperature=1` the sampled one; `svf-rl card` measures all and writes this page.

| family | right, greedy | right, sampled |
|---|---|---|
{table}
"""
