"""Run parts of DuET in processes that die at a chosen instant; imports are paid for once, before they are forked.

Started as a script it reads one job per line from stdin, as JSON, and answers with the exit status. A job names an
action below, its arguments, the cache folder, and when the process ends: ``{"rename": 3}`` right before the third
renaming, ``{"seconds": 0.7}`` by SIGKILL after so long, or null. ``{"snapshots": [FOLDER, PLACE, …]}`` lets it live and
copies the places before every renaming: what a kill at that instant would leave on the disk.
"""

import importlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import count
from pathlib import Path

from tiny_series import short_report

KILLED = -signal.SIGKILL
IMPORTS = (
    "torch",
    "matplotlib.figure",
    "ultralytics.engine.exporter",
    "duet.cli",
    "duet.deploy",
    "duet.learner",
    "duet.report.html",
    "duet.report.scenes",
    "duet.update",
    "merging.files",
)


class Forge:
    """The process that the others are forked from."""

    def __init__(self):
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen([sys.executable, __file__], env=environment, text=True, **pipes)

    def run(self, action, *arguments, cache, kill=None):
        """Exit status of the action: 0, KILLED, or 1 with its error on stderr; and the seconds it took."""
        job = {"action": action, "arguments": list(map(str, arguments)), "cache": str(cache), "kill": kill}
        print(json.dumps(job), file=self._process.stdin, flush=True)
        return tuple(json.loads(self._process.stdout.readline()))

    def close(self):
        self._process.stdin.close()
        self._process.wait()


def train(config, out):
    from duet.config import RunConfig
    from duet.learner import Learner

    Learner(RunConfig(**json.loads(Path(config).read_text())), Path(out)).run()


def update(detector, data, classes, domain, out):
    from duet.datasets.dataset_folder import open_folder
    from duet.update import Update, update_detector

    update_detector(Update(Path(detector), open_folder(Path(data)), domain, tuple(classes.split(",")), Path(out)))


def merge(base, first, second, scale, out):
    from merging.files import merge_files

    models = [Path(first), Path(second)]
    merge_files("task_arithmetic", Path(base), models, Path(out), overwrite=True, scaling_factor=float(scale))


def export(detector, out):
    from typer.testing import CliRunner

    from duet.cli import app

    options = ["--format", "torchscript", "--out", out, "--overwrite", "--scenes", "1", "--confidence", "0.0001"]
    result = CliRunner().invoke(app, ["export", detector, *options])
    if result.exit_code:
        raise result.exception if result.exception else RuntimeError(result.output)


ACTIONS = {function.__name__: function for function in (train, update, merge, export)}


def _before_every_renaming(act):
    """Call ``act`` with the number of the renaming, from 1."""
    numbers = count(1)

    def patched(original):
        def rename(*arguments, **options):
            act(next(numbers))
            return original(*arguments, **options)

        return rename

    os.replace, os.rename = patched(os.replace), patched(os.rename)


def _die(kill, number):
    if number == kill:
        os.kill(os.getpid(), signal.SIGKILL)


def _copy(folder, places, number):
    for place in filter(os.path.isdir, places):
        shutil.copytree(place, Path(folder) / str(number) / Path(place).name, symlinks=True)


def _work(job):
    import duet.report.html

    os.environ["DUET_CACHE"] = job["cache"]
    duet.report.html.write_report = short_report
    kill = job["kill"] or {}
    if "rename" in kill:
        _before_every_renaming(partial(_die, kill["rename"]))
    if "snapshots" in kill:
        _before_every_renaming(partial(_copy, kill["snapshots"][0], kill["snapshots"][1:]))
    ACTIONS[job["action"]](*job["arguments"])


def _child(job):
    sys.stdin.close()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        _work(job)
    except BaseException as error:
        print(f"{job['action']}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def _parent(process, seconds):
    """Wait for the process, and kill it when its time is over."""
    if seconds is not None:
        handle = os.pidfd_open(process)
        ended = select.select([handle], [], [], seconds)[0]
        os.close(handle)
        if not ended:
            os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main():
    for name in IMPORTS:
        importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)
    for line in sys.stdin:
        job, started = json.loads(line), time.perf_counter()
        process = os.fork()
        if process == 0:
            _child(job)
        status = _parent(process, (job["kill"] or {}).get("seconds"))
        print(json.dumps([status, time.perf_counter() - started]), flush=True)


if __name__ == "__main__":
    main()
