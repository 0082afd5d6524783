"""A study's program: arguments in, exit code out. Used by `python -m finetune.few_label` and `python -m finetune.few_label.spacing`."""

import sys
from collections.abc import Callable

from finetune.few_label.config import FewLabelConfig
from jaxseg.errors import JaxsegError, Preempted
from jaxseg.freed_memory import keep_freed_memory
from jaxseg.warning_lines import warnings_as_lines


def run_program(name: str, arguments: list[str], work: Callable[[FewLabelConfig], bool]) -> int:
    """Do `work` with the `FewLabelConfig` that `arguments` (CONFIG, then overrides) ask for.

    `work` prints what it found and returns whether cells failed; it imports what it needs when it is called, since freed memory must be kept
    before an import starts a thread. Returns the exit code, that of `jaxseg`: 3 where cells failed, 75 interrupted.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: python -m finetune.{name} CONFIG [--field value …]; CONFIG --help lists the fields", file=sys.stderr)
        return 0 if arguments else 2
    keep_freed_memory()
    from jaxseg.compilation import use_cache
    from jaxseg.config import load_config

    try:
        use_cache()
        with warnings_as_lines(name):
            return 3 if work(load_config(arguments[0], "few_label", FewLabelConfig, arguments[1:])) else 0
    except JaxsegError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{name}: interrupted; the same command goes on where it was", file=sys.stderr)
        return Preempted.exit_code
