"""`python -m finetune.few_label CONFIG [--field value …]`; exit codes as `jaxseg`, 3 where cells failed or left test cases out."""

import sys

from finetune.few_label.config import FewLabelConfig
from finetune.few_label.program import run_program


def main(arguments: list[str]) -> int:
    """Run a study and print its table."""
    return run_program("few_label", arguments, _study)


def _study(config: FewLabelConfig) -> bool:
    from finetune.few_label.study import run_study

    results = run_study(config)
    print((results.folder / "table.md").read_text(encoding="utf-8"))
    print(f"{results.folder / 'index.html'}\n{results.folder / 'results.json'}")
    return bool(results.content["failures"]) or any(cell.get("left_out") for cell in results.content["cells"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
