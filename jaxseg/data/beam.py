"""Staging cases as an Apache Beam pipeline, for archives beyond one machine. Handed to `store.build_store` by `jaxseg prepare --beam`.

The workers do what worker processes do (`staging.stage`) and write the same staging files, so the store is the same to the byte. They must
see the scans and the store's folder under the same paths as the machine that starts the pipeline (a shared file system).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxseg.data.staging import Job, is_staged, stage
from jaxseg.data.workers import Outcome
from jaxseg.errors import ConfigError, JaxsegError


def stage_on_beam(options: Sequence[str] = ()) -> Callable[[Sequence[Job]], Iterator[Outcome]]:
    """A `stage` for `build_store` that runs on Beam.

    Args:
        options: Beam's own, such as ["--runner=FlinkRunner", "--flink_master=HOST:8081", "--environment_type=LOOPBACK"]; none of them
            is the local runner.

    Raises:
        ConfigError: Apache Beam is not installed, or does not know an option.
    """
    beam = _beam()
    from apache_beam.options.pipeline_options import PipelineOptions

    try:
        parsed = PipelineOptions(list(options))
    except SystemExit:
        raise ConfigError(f"Apache Beam refuses the options {' '.join(options)}; its message is above") from None

    def stage_jobs(jobs: Sequence[Job]) -> Iterator[Outcome]:
        if not jobs:
            return
        # What comes back from the workers comes as files: a pipeline has no way home for its elements on every runner.
        with beam.Pipeline(options=parsed) as pipeline:
            cases = pipeline | "cases" >> beam.Create(list(jobs))
            # Reshuffle, or a runner may keep all cases in the bundle that created them, on one worker.
            _ = cases | "spread" >> beam.Reshuffle() | "prepare" >> beam.Map(stage_or_say)
        for job in jobs:
            yield job, None if is_staged(job) else _reason(job)

    return stage_jobs


def stage_or_say(job: Job) -> None:
    """Stage one case; the reason why it must be left out lies beside its staging file then. Bundles may run twice: the result is the same."""
    said = job.path.with_suffix(".reason")
    said.unlink(missing_ok=True)
    if is_staged(job):
        return
    reason = stage(job)
    if reason is not None:
        job.path.parent.mkdir(parents=True, exist_ok=True)
        said.write_text(reason, encoding="utf-8")


def _reason(job: Job) -> str:
    said = job.path.with_suffix(".reason")
    if not said.is_file():
        raise JaxsegError(
            f"the pipeline ended, but {job.path} is not here: the workers do not see this folder under the same path. Put the store (and the "
            "scans) on a file system that all of them share"
        )
    return said.read_text(encoding="utf-8")


def _beam() -> Any:
    try:
        import apache_beam
    except ImportError:
        raise ConfigError("preparing on Apache Beam needs its package, which is not installed: pip install 'jaxseg[beam]'") from None
    return apache_beam
