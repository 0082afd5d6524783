"""`python -m finetune.few_label.spacing CONFIG [--field value …]`: whether a pretraining at one spacing still pays on the same scans at others."""

import sys

from finetune.few_label.config import FewLabelConfig
from finetune.few_label.program import run_program


def main(arguments: list[str]) -> int:
    """Run the test and print its table; exit codes as those of the study."""
    return run_program("few_label.spacing", arguments, _spacings)


def _spacings(config: FewLabelConfig) -> bool:
    from finetune.few_label.spacing.study import as_table, run_spacings

    content = run_spacings(config)
    print(as_table(content))
    return bool(content["failures"] or content["left_out"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
