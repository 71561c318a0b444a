"""Runs as jobs: what is submitted, watched, and submitted again. The queue is a stand-in; real jobs
are in test_jobs.py."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from types import SimpleNamespace

import made_results
import pytest
from fakes import Noting, make_task

from fanin.benchmarks.harness import cluster
from fanin.benchmarks.harness.cluster import Cluster, Resources, StoppedError, run_as_jobs
from fanin.benchmarks.harness.job import EventReader, Recorder, events_path
from fanin.benchmarks.harness.queues import ClusterError, JobState
from fanin.benchmarks.harness.request import Options, begun, failed, requests
from fanin.benchmarks.records.statistics import GIB
from fanin.benchmarks.records.store import read_result, write_result

NEEDS = Resources(memory_bytes=3 * GIB, minutes=31, cpus=2, gpus=0)


def result_of(request, **values):
    data = made_results.dataset(name=request.task.dataset, features=request.task.features)
    return made_results.run(dataset=data, for_task=request.task, backend=request.backend, **values)


@dataclass
class StandIn:
    """A queue whose jobs do, one after the other at each question, what `lives` lists: a function
    of the request, or the last state of a job that ends so."""

    lives: list = field(default_factory=list)
    identity: str = "stand-in"
    poll_seconds: float = 0.0
    shares_this_machine: bool = False
    submitted: list = field(default_factory=list)
    cancelled: list = field(default_factory=list)
    parameters: dict = field(default_factory=dict)
    known: dict = field(default_factory=dict)

    def submit(self, folder, jobs, parameters):
        self.parameters = parameters
        first = len(self.submitted)
        self.submitted += jobs
        ids = [f"7_{number}" for number in range(first, len(self.submitted))]
        self.known |= dict.fromkeys(ids, JobState("PENDING", "Resources"))
        return ids

    def states(self):
        for job, state in self.known.items():
            if state.is_active and self.lives:
                life = self.lives.pop(0)
                if callable(life):
                    life(self.submitted[int(job.partition("_")[2])].request)
                    life = "COMPLETED"
                self.known[job] = JobState(life)
        return dict(self.known)

    def cancel(self, ids):
        self.cancelled += ids

    def cancel_command(self, ids):
        return f"end {' '.join(ids)}"


class Screen:
    """Notes what the runs' displays are told, and what is said to all."""

    def __init__(self):
        self.displays, self.lines, self.counts = [], [], []

    def line(self):
        self.displays.append(Noting())
        return self.displays[-1]

    def say(self, text):
        self.lines.append(text)

    def count(self, ended, total, facts):
        self.counts.append((ended, total, facts))


def finish(request):
    """What a job does that comes to its end."""
    recorder = Recorder(events_path(request.path))
    recorder.begin(request, 1, 1)
    write_result(request.path, result_of(request))
    recorder.end(read_result(request.path), skipped=False)


@pytest.fixture
def queue(monkeypatch):
    queue = StandIn()
    monkeypatch.setitem(cluster.QUEUES, "stand-in", lambda: queue)
    monkeypatch.setattr(cluster, "_POLL_SECONDS", 0.0)
    return queue


@pytest.fixture
def todo(tmp_path):
    tasks = [make_task(seed=seed) for seed in (1, 2)]
    return requests(tasks, ["torch"], Options(results=tmp_path))


def run(todo, screen=None, **values):
    return run_as_jobs(todo, Cluster("stand-in", **values), NEEDS, screen or Screen())


class TestGrid:
    def test_each_run_is_a_job_and_leaves_nothing_beside_its_result(self, queue, todo, tmp_path):
        queue.lives = [finish, finish]
        screen = Screen()
        results = run(todo, screen)
        assert [r.task.seed for r in results] == [1, 2]
        assert [display.lines for display in screen.displays] == [["finished"]] * 2
        assert len(queue.submitted) == 2 and queue.parameters["mem_gb"] == 3
        assert queue.submitted[0].request.options.threads == 2
        assert {p.suffix for p in tmp_path.rglob("*") if p.is_file()} == {".json"}
        assert run(todo) == results and len(queue.submitted) == 2  # skipped

    def test_a_job_without_a_result_is_submitted_again(self, queue, todo):
        queue.lives = ["CANCELLED", finish, finish]
        screen = Screen()
        results = run(todo, screen)
        assert [r.status for r in results] == ["finished"] * 2
        assert len(queue.submitted) == 3
        assert "job 7_0 ended (CANCELLED) without a result" in screen.lines[1]
        assert "submitted again, 1 of 2 times" in screen.lines[1]

    def test_not_for_ever(self, queue, todo):
        queue.lives = [finish, *["OUT_OF_MEMORY"] * 2]
        first, second = run(todo, retries=1)
        assert (first.status, second.status) == ("finished", "failed")
        assert second.failure.kind == "ProcessDied" and "OUT_OF_MEMORY" in second.failure.message
        assert read_result(todo[1].path) == second
        assert len(queue.submitted) == 3

    def test_a_run_whose_own_process_was_killed_is_submitted_again(self, queue, todo):
        def lose_child(request):
            recorder = Recorder(events_path(request.path))
            recorder.begin(request, 1, 1)
            lost = failed(begun(request), "ProcessDied", "signal SIGKILL", "")
            write_result(request.path, lost)
            recorder.end(lost, skipped=False)

        queue.lives = [lose_child, finish, finish]
        assert [r.status for r in run(todo)] == ["finished"] * 2
        queue.lives = [lose_child] * 3
        (last,) = run([todo[0].model_copy(update={"task": make_task(seed=3)})], retries=2)
        assert last.failure.message == "signal SIGKILL"

    def test_a_failure_of_the_run_itself_is_not_tried_again(self, queue, todo):
        def fail(request):
            recorder = Recorder(events_path(request.path))
            write_result(request.path, failed(begun(request), "DataError", "so it is", ""))
            recorder.end(read_result(request.path), skipped=False)

        queue.lives = [fail, finish]
        assert [r.status for r in run(todo)] == ["failed", "finished"]
        assert len(queue.submitted) == 2

    def test_a_finished_result_outlives_jobs_that_die(self, queue, todo):
        """It was to run again for its weights."""
        (request, _) = todo
        write_result(request.path, result_of(request))
        options = request.options.model_copy(update={"save_weights": True})
        again = request.model_copy(update={"options": options})
        queue.lives = ["FAILED"]
        (result,) = run([again], retries=0)
        assert result.status == "failed"
        assert read_result(request.path).status == "finished"

    def test_ctrl_c_with_a_single_job(self, queue, todo):
        def interrupt(_):
            raise KeyboardInterrupt

        queue.lives = [interrupt]
        screen = Screen()
        with pytest.raises(StoppedError, match=r"with 1 job under way; .* to cancel: `end 7_0`"):
            run(todo[:1], screen)
        assert "1 run submitted, each 3.0 GiB, 2 CPUs, 31 minutes" in screen.lines[0]

    @pytest.mark.parametrize("on_interrupt", ["leave", "cancel"])
    def test_ctrl_c_and_the_same_command_again(self, queue, todo, on_interrupt):
        def interrupt(_):
            raise KeyboardInterrupt

        queue.lives = [interrupt]
        with pytest.raises(StoppedError) as stopped:
            run(todo, on_interrupt=on_interrupt)
        if on_interrupt == "cancel":
            assert queue.cancelled == ["7_0", "7_1"] and "cancelled 2 jobs" in str(stopped.value)
            queue.known = dict.fromkeys(queue.known, JobState("CANCELLED"))
        else:
            assert "2 jobs under way;" in str(stopped.value)
            assert "`end 7_0 7_1`" in str(stopped.value)
        queue.lives = ["RUNNING", "RUNNING", finish, finish]
        if on_interrupt == "cancel":
            queue.lives = [finish, finish]
        screen = Screen()
        assert [r.status for r in run(todo, screen)] == ["finished"] * 2
        assert len(queue.submitted) == (4 if on_interrupt == "cancel" else 2)
        taken_over = any("2 runs with a job already: 7_0, 7_1" in line for line in screen.lines)
        assert taken_over == (on_interrupt == "leave")

    def test_a_queue_that_does_not_answer_is_asked_again(self, queue, todo, monkeypatch):
        answers = iter([queue.states, None, None, *[queue.states] * 9])

        def states():
            answer = next(answers)
            if answer is None:
                raise ClusterError("squeue: no answer")
            return answer()

        monkeypatch.setattr(queue, "states", states)
        queue.lives = [finish, finish]
        screen = Screen()
        assert [r.status for r in run(todo, screen)] == ["finished"] * 2
        assert (0, 2, "squeue: no answer") in screen.counts
        assert len(queue.submitted) == 2

    def test_on_this_machine_no_more_at_once_than_fit(self, queue, todo, monkeypatch):
        most = []

        def watched(request):
            most.append(sum(state.is_active for state in queue.known.values()))
            finish(request)

        queue.shares_this_machine, queue.lives = True, [watched, watched]
        monkeypatch.setattr(cluster, "cores", lambda: 3)
        monkeypatch.setattr(cluster, "available_bytes", lambda: 30 * GIB)
        monkeypatch.setattr(cluster, "uses_gpu", lambda _: False)
        run(todo)
        assert most == [1, 1]  # two CPUs each, of three

    def test_settings_of_slurm(self, queue, todo):
        queue.lives = [finish, finish]
        run(todo, settings={"time": "90", "partition": "long"}, at_once=1)
        assert queue.parameters["timeout_min"] == 90
        assert queue.parameters["slurm_additional_parameters"] == {
            "requeue": True,
            "partition": "long",
        }
        assert queue.parameters["slurm_array_parallelism"] == 1


def test_resources_are_the_largest_of_the_plans():
    def plan(peak, data, hours, repeat):
        task, expected = make_task(repeat=repeat), SimpleNamespace(peak_bytes=peak)
        return SimpleNamespace(task=task, expected=expected, data_bytes=data, hours=hours)

    plans = [plan(4 * GIB, 0, 1.0, 1), plan(GIB, GIB, 6.0, 2)]
    needs = Resources.of(plans, Options(threads=3, device="cuda"))
    assert needs == Resources(7 * GIB, 30 + 6 * 60, 3, 1)  # 1.25 * 4 + 2; 3 hours twice
    assert Resources.of(plans, Options(threads=3, profile="shapes")).minutes == 30


class TestEvents:
    def test_a_line_that_a_kill_cut_short_spoils_no_other(self, tmp_path):
        path = tmp_path / "torch-0.events"
        reader = EventReader(path)
        assert list(reader.new()) == []
        recorder = Recorder(path)
        recorder.event({"event": "phase", "name": "one"})
        with path.open("a") as file:
            file.write('{"event": "ph')
        assert [event["name"] for event in reader.new()] == ["one"]
        recorder.event({"event": "phase", "name": "two"})
        assert [event["name"] for event in reader.new()] == ["two"]
        assert list(reader.new()) == []

    def test_steps_are_thinned_out_and_the_last_is_kept(self, tmp_path):
        recorder = Recorder(tmp_path / "events")
        for done in range(1, 51):
            recorder.event({"event": "step", "done": done, "total": 50, "loss": 1.0})
        lines = (tmp_path / "events").read_text().split()
        assert len(lines) < 20
        kept = [event["done"] for event in EventReader(tmp_path / "events").new()]
        assert kept[-1] == 50 and len(kept) == 2

    def test_a_full_disk_ends_no_training(self, tmp_path):
        Recorder(tmp_path / "no" / "folder").event({"event": "phase", "name": "one"})


def test_the_record_of_another_queue_is_not_taken_over(queue, todo):
    record = {"queue": "another", "job": "6_0", "folder": "f"}
    todo[0].path.parent.mkdir(parents=True)
    for text in (json.dumps(record), "{", "[]"):
        todo[0].path.with_suffix(".job").write_text(text)
        queue.known, queue.lives = {"6_0": JobState("RUNNING")}, ["RUNNING", "RUNNING", finish]
        queue.submitted = []
        (result,) = run(todo[:1])
        assert result.status == "finished" and len(queue.submitted) == 1
        todo[0].path.unlink()
