"""All side-by-side measurements: `python -m bench` prints a table and writes bench/results.json.

`python -m bench rollout` runs one of them. Each module beside this one has a `run` that returns rows of name, ours, theirs, unit
and ratio; both sides take turns in one process.
"""

import importlib
import importlib.metadata
import json
import platform
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
VERSIONS = ("torch", "transformers", "numpy")


def main(names: list[str]) -> int:
    """Run the measurements of these names, or all there are."""
    known = sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"no measurement {', '.join(unknown)}; expected {', '.join(known)}", file=sys.stderr)
        return 2
    rows: list[dict[str, Any]] = []
    for name in names or known:
        print(f"{name} ...", flush=True)
        rows += importlib.import_module(f"bench.{name}").run()
    versions = {name: importlib.metadata.version(name) for name in VERSIONS}
    results = {"python": platform.python_version(), "versions": versions, "rows": rows}
    (HERE / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"{'':64} {'ours':>10} {'theirs':>10}  ratio")
    for row in rows:
        print(f"{row['name']:64} {row['ours']:10.1f} {row['theirs']:10.1f}  {row['ratio']:.2f}  {row['unit']}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
