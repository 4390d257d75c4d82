"""`svf-rl harness tasks=[arc_easy]`: tasks of the lm-evaluation-harness on the base, an expert or a dispatched system.

What is written is the harness's own results, with the fingerprint of the base and the row that answered.
"""

import json
import shlex

from svf_rl.base.load import Base, load_base
from svf_rl.commands.folders import out_folder, revision
from svf_rl.config import HarnessConfig
from svf_rl.errors import UserError
from svf_rl.evaluate.rows import DISPATCHERS, Row, base_row, composed_rows, file_row, find_files
from svf_rl.files import write_json
from svf_rl.progress import Progress
from svf_rl.settings import listed


def run(configs: list[HarnessConfig], command: list[str]) -> None:
    try:
        from svf_rl.evaluate import harness  # which needs the extra
    except ModuleNotFoundError:
        raise UserError("the lm-evaluation-harness is an extra: pip install 'svf-rl[lm-eval]'") from None
    for config in configs:
        folder, base = out_folder(config.out), load_base(config.base)
        row = find_row(config, base)
        model = harness.HarnessModel(base, row, config.rows, config.seed)
        found = harness.evaluate(model, listed(config.tasks), config.include, config.shots, config.limit)
        about = {"command": shlex.join(command), "revision": revision(), "fingerprint": base.fingerprint, "row": row.name}
        kept = {key: found[key] for key in ("results", "versions", "n-shot", "n-samples", "configs")}
        write_json(folder / "harness.json", json.loads(json.dumps({**about, **kept}, default=str)))
        print(harness.make_table(found))
        print(f"answered by {row.name}: {folder / 'harness.json'}")


def find_row(config: HarnessConfig, base: Base) -> Row:
    """The row of that name, of those that `svf-rl matrix` would have; without a name the only expert, or the base."""
    files = find_files(config.experts) if config.experts else {}
    name = config.row or (next(iter(files)) if len(files) == 1 else "")
    if not files and name in ("", "base"):
        return base_row()
    made = {"base": base_row()} | {own: file_row(own, path, base) for own, path in files.items()}
    if name not in made:
        chosen = [name] if name in DISPATCHERS else []
        made |= {row.name: row for row in composed_rows(files, base, chosen, Progress())}
    if name not in made:
        raise UserError(f"expected row=<one of {', '.join([*made, *DISPATCHERS])}>, found {config.row!r}")
    return made[name]
