"""`python -m finetune.few_label.spacing CONFIG [--field value …]`: whether a pretraining at one spacing still pays on the same scans at others."""

import sys

from jaxseg.errors import JaxsegError
from jaxseg.freed_memory import keep_freed_memory


def main(arguments: list[str]) -> int:
    """Run the test and print its table; exit codes as those of the study."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m finetune.few_label.spacing CONFIG [--field value …]", file=sys.stderr)
        return 0 if arguments else 2
    keep_freed_memory()
    from finetune.few_label.config import FewLabelConfig
    from finetune.few_label.spacing.study import as_table, run_spacings
    from jaxseg.compilation import use_cache
    from jaxseg.config import load_config

    try:
        use_cache()
        content = run_spacings(load_config(arguments[0], "few_label", FewLabelConfig, arguments[1:]))
    except JaxsegError as error:
        print(f"few_label.spacing: error: {error}", file=sys.stderr)
        return error.exit_code
    print(as_table(content))
    return 3 if content["failures"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
