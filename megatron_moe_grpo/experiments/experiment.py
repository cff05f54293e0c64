"""One table from its file to its page."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_moe_grpo.experiments.jobs import Job, JobEvent, run_jobs
from megatron_moe_grpo.experiments.page import json_page, markdown_page
from megatron_moe_grpo.experiments.plan import Plan, make_plan, readable, refuse_stale
from megatron_moe_grpo.experiments.provenance import current_commit, provenance
from megatron_moe_grpo.experiments.results import mean_start_cpu_s, read_cells
from megatron_moe_grpo.experiments.table_file import Setup, Table, load_table, select_cells


@dataclass(frozen=True)
class Experiment:
    """A table, checked and planned; nothing has run yet."""

    name: str
    table: Table
    setup: Setup
    plan: Plan

    @classmethod
    def open(cls, path: Path, seeds: Sequence[int] | None, out: Path) -> "Experiment":
        """Raises ConfigError for a table that cannot be run as it stands; `seeds` None: the table's own."""
        table, setup, base = load_table(path)
        chosen = table.seeds if seeds is None else tuple(dict.fromkeys(seeds))
        plan = make_plan(table, setup, base, chosen, out)
        refuse_stale(plan)
        return cls(path.stem, table, setup, plan)

    def commands(self, only: Sequence[str] | None) -> str:
        """Every command, those that are done marked."""
        lines = []
        for job in self.plan.jobs(select_cells(self.table, only)):
            lines.append(f"# {job.title}")
            for step in job.steps:
                lines.append(f"{readable(step.command)}{'  # done' if step.output.exists() else ''}")
        return "\n".join(lines)

    def run(self, only: Sequence[str] | None, num_at_once: int) -> list[str]:
        """Runs what is not done, and prints a line when a run starts and when it ends; returns what failed."""
        jobs = self.plan.jobs(select_cells(self.table, only))
        run_jobs(jobs, num_at_once, {"commit": current_commit()}, _Reporter(len(jobs)).tell)
        return [job.title for job in jobs if job.failure is not None]

    def write_pages(self, folder: Path, command: Sequence[str]) -> None:
        """FOLDER/<table>.md and .json, from every finished run of the table, also of earlier commands."""
        results = read_cells(self.table, self.plan.runs)
        if not any(result.runs for result in results):
            print("no run has finished, so there is no page")
            return
        shared = self.setup.settings | self.table.settings
        facts = provenance(command) | {"start_cpu_s": mean_start_cpu_s(self.plan.starts)}
        folder.mkdir(parents=True, exist_ok=True)
        page, values = folder / f"{self.name}.md", folder / f"{self.name}.json"
        page.write_text(markdown_page(self.table, results, shared, facts), encoding="utf-8")
        text = json.dumps(json_page(self.table, results, shared, facts), indent=1, ensure_ascii=False)
        values.write_text(f"{text}\n", encoding="utf-8")
        print(f"written: {page}, {values}")


class _Reporter:
    """What a person at the terminal sees."""

    def __init__(self, num_jobs: int) -> None:
        self._num_jobs, self._num_ended = num_jobs, 0
        self._started_s: dict[str, float] = {}

    def tell(self, event: JobEvent, job: Job) -> None:
        """One line a change; the end of its output where a job failed."""
        self._num_ended += event in ("done", "failed")
        if event == "starts":
            self._started_s[job.title] = time.monotonic()
            words = f"starts, output in {job.log}"
        elif event == "waits":
            words = "waits: another experiment works in its folder"
        elif job.title in self._started_s:
            words = f"{event} after {time.monotonic() - self._started_s[job.title]:.0f} s"
        else:
            words = "done before" if event == "done" else "failed"
        reason = "" if job.failure is None else f"\n{job.failure}"
        print(f"[{self._num_ended}/{self._num_jobs}] {job.title}: {words}{reason}", flush=True)
