"""Runs in trackio's local database, which ``trackio show`` displays."""

from collections.abc import Callable, Iterator

from rankscope.tools.trackers import RUN, TrackedRun

CUT = " (not complete)"  # End of a run's name until everything is written


class Trackio:
    def __init__(self, project: str) -> None:
        import trackio
        from trackio.utils import TRACKIO_DIR

        self.trackio, self.project, self.store = trackio, project, str(TRACKIO_DIR)

    def runs(self) -> Iterator[tuple[str, Callable[[], object]]]:
        try:
            found = list(self.trackio.Api().runs(self.project))
        except ValueError:  # no such project yet
            return
        for run in found:
            if run_id := (run.config or {}).get(RUN):
                yield run_id.split("-")[0] if run.name.endswith(CUT) else run_id, run.delete

    def write(self, run: TrackedRun) -> None:
        started = self.trackio.init(
            project=self.project,
            name=run.name + CUT,
            group=run.group or None,
            config={**run.config, RUN: run.id},
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        for step, values in run.history:
            started.log(values, step=step)
        started.finish()
        (written,) = (one for one in self.trackio.Api().runs(self.project) if one.id == started.id)
        written.rename(run.name)
