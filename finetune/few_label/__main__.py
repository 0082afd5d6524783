"""`python -m finetune.few_label CONFIG [--field value …]`; exit codes as `jaxseg`, 3 where cells failed."""

import sys

from jaxseg.errors import JaxsegError
from jaxseg.freed_memory import keep_freed_memory


def main(arguments: list[str]) -> int:
    """Run a study and print its table."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m finetune.few_label CONFIG [--field value …]", file=sys.stderr)
        return 0 if arguments else 2
    keep_freed_memory()
    from finetune.few_label.config import FewLabelConfig
    from finetune.few_label.study import run_study
    from jaxseg.compilation import use_cache
    from jaxseg.config import load_config

    try:
        use_cache()
        config = load_config(arguments[0], "few_label", FewLabelConfig, arguments[1:])
        results = run_study(config)
    except JaxsegError as error:
        print(f"few_label: error: {error}", file=sys.stderr)
        return error.exit_code
    print((results.folder / "table.md").read_text(encoding="utf-8"))
    print(f"{results.folder / 'index.html'}\n{results.folder / 'results.json'}")
    return 3 if results.content["failures"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
