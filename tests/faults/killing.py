"What the tests that kill processes share: start a command, kill it with −9, look at what is left."

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

from moe_expert.tuning.artifacts import load_checkpoint, read_json

# Importing takes longer than the work to be interrupted. So one process imports, never computes,
# and forks for every life of the command.
# With `k`, the k-th write of that life into a file of ours is cut in half: half of the data is on
# the disk, under the temporary name, when the
# process kills itself; with k.5 the file has just got its name.
NURSERY = """
import importlib, json, os, resource, signal, sys
import torch, optuna, sklearn.linear_model, moe_expert.report, moe_expert.run_expert_tuning
if importlib.util.find_spec('moe_expert.run_moe'): import moe_expert.run_moe, moe_expert.trainer
from moe_expert.data.files import atomic_write
from moe_expert.tuning import artifacts as tuning_artifacts
from moe_expert.tuning import storage as tuning_storage
tuning_storage.HEARTBEAT = 1  # the dead are missed after 2.5 of them

def live(module, cut, argv):
    writes = 0
    def write_bytes(path, data):
        nonlocal writes
        writes += 1
        with atomic_write(path) as file:
            if writes == cut:
                file.write(data[:len(data) // 2])
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            file.write(data)
        if writes == cut - .5: os.kill(os.getpid(), signal.SIGKILL)
    if cut: tuning_artifacts.write_bytes = write_bytes
    return sys.modules[module].main(argv)

print('ready', flush=True)
for line in sys.stdin:
    module, cut, argv, log, largest = json.loads(line)
    out, into = os.pipe() # not the log itself: it may not grow either
    pid = os.fork()
    if not pid:
        os.dup2(into, 1), os.dup2(into, 2), os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.close(into), os.close(out)
        if largest is not None: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
        try: code = live(module, cut, argv)
        except SystemExit as end: code = end.code or 0
        except BaseException:
            import traceback
            traceback.print_exc()
            code = 99
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(pid, flush=True)
    os.close(into)
    with open(out, 'rb') as said, open(log, 'ab') as log:
        log.write(said.read()) # until the process has ended
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Nursery:
    "Where processes that run a command come from."

    def __init__(self, log):
        self.log = str(log)
        self.process = subprocess.Popen(
            [sys.executable, '-c', NURSERY],
            env=os.environ | {'OMP_NUM_THREADS': '1'},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline() == 'ready\n'

    def life(self, module, argv, *, after=None, cut=0, by=signal.SIGKILL, log=None, largest=None):
        """Run a command (no file of it may grow beyond `largest`).

        Kill it after so many seconds or in its `cut`-th write. → (exit code, seconds).
        """
        self.process.stdin.write(
            json.dumps([module, cut, list(map(str, argv)), str(log or self.log), largest]) + '\n'
        )
        self.process.stdin.flush()
        pid, start = int(self.process.stdout.readline()), time.perf_counter()
        timer = threading.Timer(
            after or 0, os.kill, (pid, by)
        )  # a process that has ended stays known until the nursery has seen it
        if after is not None:
            timer.start()
        code = int(self.process.stdout.readline())
        timer.cancel()
        return code, time.perf_counter() - start

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(60)


def finished_trials(folder):
    """Study → number of trials that count, read from the database without any code of ours or
    Optuna's.

    The file must be whole.
    """
    counts = {}
    for path in Path(folder).glob('*_studies.db'):
        with closing(sqlite3.connect(path, timeout=60)) as db:
            assert db.execute('PRAGMA integrity_check').fetchone() == ('ok',)
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'trials'").fetchone():
                continue  # killed before it was made
            counts |= dict(
                db.execute(
                    """SELECT study_name, COUNT(*) FROM trials JOIN studies USING (study_id)
                    WHERE state = 'COMPLETE' OR (state =
                    """
                    """'FAIL' AND trial_id IN (SELECT trial_id FROM trial_user_attributes WHERE
                    key = 'error')) GROUP BY 1
                    """
                )
            )
    return counts


def assert_whole(folder):
    "Every file is whole and readable; nothing else lies there but what is written at the moment."
    for path in Path(folder).iterdir():
        if path.suffix == '.pt':
            assert load_checkpoint(path)
        elif path.suffix == '.json':
            assert read_json(path)
        else:
            assert path.name.startswith('.') or '_studies.db' in path.name, path.name
