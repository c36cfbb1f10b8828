"""Two machines of one name: two UTS and PID namespaces, as two clones called `ubuntu` are.

The workers share a study in SQLite. One is stopped for longer than a dead process of the same
machine may be silent, and for less than a machine that cannot be looked at may: the other one
leaves its live trials alone. Then it is killed, and its trials are repeated.
"""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest
from conftest import ROOT
from killing import finished_trials

UNSHARE = ['unshare', '--uts', '--pid', '--fork', '--mount-proc']
N_TRIALS = 135  # nine batches
HEARTBEAT, GRACE, STOPPED = 1, 25, 8  # seconds; a dead process is missed after 2.5 heartbeats

WORKER = f"""
import logging, os, socket, sys, time
from moe_expert import tune_experts
from moe_expert.data.synthetic import make_synthetic
from moe_expert.tuning import storage, studies, trials

folder, name = sys.argv[1:]
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
storage.HEARTBEAT, storage.GRACE, studies.WAIT = {HEARTBEAT}, {GRACE}, 0.2
train = tune_experts.train_population

def slowly(*args, **kwargs):
    time.sleep(3)
    return train(*args, **kwargs)

tune_experts.train_population = slowly
with open(f'{{folder}}/.{{name}}', 'w') as file:
    file.write(f'{{socket.gethostname()}} {{os.getpid()}} {{trials.worker_name()}}')
tuner = tune_experts.ExpertTuner(make_synthetic(200), cache_dir=folder, epochs=40)
tuner.tune_expert('expert1', n_trials={N_TRIALS})
"""


def permitted():
    if not shutil.which('unshare'):
        return False
    command = [*UNSHARE, 'sh', '-c', 'hostname ubuntu && hostname']
    return subprocess.run(command, capture_output=True, text=True).stdout == 'ubuntu\n'


pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(
        not sys.platform.startswith('linux') or not permitted(),
        reason='needs UTS and PID namespaces: unshare (util-linux) as root on Linux',
    ),
]


class Machine:
    "A worker in namespaces of its own, on a machine called `ubuntu`."

    def __init__(self, folder, name, pid):
        self.folder, self.name, self.log = folder, name, folder / f'.{name}.log'
        # so many processes before it, so that the two have different numbers
        before = 'i=1; while [ $i -lt "$0" ]; do /bin/true; i=$((i+1)); done; '
        script = f'hostname ubuntu; {before}"$@"'  # no exec: the shell is process 1
        command = [*UNSHARE, 'sh', '-c', script, str(pid), sys.executable, '-c', WORKER]
        with open(self.log, 'wb') as log:
            self.process = subprocess.Popen(
                [*command, str(folder), name],
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)},
                start_new_session=True,
            )

    def said(self):
        return self.log.read_text(errors='replace')

    @property
    def described(self):
        "Host name, process number and worker name, as the worker sees them."
        wait_for(lambda: self.there() or self.process.poll() is not None, 'a worker that starts')
        assert self.there(), self.said()
        return (self.folder / f'.{self.name}').read_text().split(' ')

    def there(self):
        path = self.folder / f'.{self.name}'
        return path.exists() and len(path.read_text().split(' ')) == 3

    def send(self, number):
        "A signal to the worker itself, wherever its namespace is: it is the last child."
        for pid in descendants(self.process.pid):
            os.kill(pid, number)

    def running(self):
        "Its trials that are running."
        assert self.process.poll() in (None, -signal.SIGKILL, 0), self.said()
        return rows(self.folder, "t.state = 'RUNNING' AND a.value_json LIKE ?", self.described[2])

    def end(self):
        if self.process.poll() is None:
            self.send(signal.SIGCONT)
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)


def descendants(pid):
    "The process and all that it started."
    path = f'/proc/{pid}/task/{pid}/children'
    try:
        with open(path) as file:
            children = [int(word) for word in file.read().split()]
    except OSError:
        children = []
    return [pid, *(p for child in children for p in descendants(child))]


def rows(folder, condition, worker=''):
    "Numbers of trials, by their state and the name of their worker."
    paths = list(folder.glob('*_studies.db'))
    if not paths:
        return []
    query = f"""SELECT t.number FROM trials t JOIN trial_user_attributes a USING (trial_id)
        WHERE a.key = 'worker' AND {condition} ORDER BY t.number"""
    try:
        with closing(sqlite3.connect(paths[0], timeout=60)) as db:
            return [n for (n,) in db.execute(query, (f'%{worker}%',))]
    except sqlite3.OperationalError:  # the tables are being made
        return []


def failed(folder):
    return rows(folder, "t.state = 'FAIL' AND a.value_json LIKE ?")


def drawn(folder):
    "Number of a trial → its parameters, for those that have both."
    query = """SELECT t.number, p.param_name, p.param_value FROM trials t
        JOIN trial_params p USING (trial_id) ORDER BY 1, 2"""
    params = {}
    with closing(sqlite3.connect(next(folder.glob('*_studies.db')), timeout=60)) as db:
        for number, *param in db.execute(query):
            params.setdefault(number, []).append(param)
    return {n: p for n, p in params.items() if len(p) == 2}  # learning rate and weight decay


def wait_for(condition, what, seconds=240):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f'waited in vain for {what}'
        time.sleep(0.1)


def stop_between_writes(machine):
    "Stop a worker where it does not hold the lock of the database, for which all would wait."
    (path,) = machine.folder.glob('*_studies.db')
    for _ in range(20):
        machine.send(signal.SIGSTOP)
        with closing(sqlite3.connect(path, timeout=3, isolation_level=None)) as db:
            try:
                db.execute('BEGIN IMMEDIATE')
                return db.execute('ROLLBACK')
            except sqlite3.OperationalError:
                machine.send(signal.SIGCONT)
        time.sleep(0.3)
    raise AssertionError('the database was always locked')


@pytest.fixture
def machines(tmp_path):
    "Two workers that share a study; their process numbers differ."
    made = [Machine(tmp_path, 'first', 40), Machine(tmp_path, 'second', 1)]
    yield made
    for machine in made:
        machine.end()


def test_two_machines_of_one_name(machines, tmp_path):
    first, second = machines
    (host, pid, name), (other_host, other_pid, other) = first.described, second.described
    assert host == other_host == 'ubuntu' and pid != other_pid
    assert name.split('/')[0] == other.split('/')[0] == 'ubuntu'
    assert name.split(':')[0] != other.split(':')[0]  # two machines

    # stopped: the other one goes on, and closes none of its trials
    wait_for(lambda: first.running() and second.running(), 'trials of both')
    stopped = first.running()
    stop_between_writes(first)
    stopped, done = first.running(), sum(finished_trials(tmp_path).values())
    assert stopped
    time.sleep(STOPPED)
    wait_for(lambda: sum(finished_trials(tmp_path).values()) > done, 'a batch of the other one')
    assert first.running() == stopped and failed(tmp_path) == []
    first.send(signal.SIGCONT)
    wait_for(lambda: set(first.running()) - set(stopped), 'its next batch')
    assert failed(tmp_path) == []

    # killed: what it had begun is closed after the stated time, and repeated by the other one
    wait_for(lambda: first.running() and set(first.running()) <= set(drawn(tmp_path)), 'its draws')
    first.send(signal.SIGKILL)
    first.process.wait(30)
    killed = first.running()
    second.process.wait(240)
    assert second.process.returncode == 0, second.said()
    assert killed and failed(tmp_path) == killed, second.said()
    assert list(finished_trials(tmp_path).values()) == [N_TRIALS]
    assert second.said().count('was interrupted: it is tried again') == len(killed)
    params = drawn(tmp_path)
    repeated = [n for n in killed if n in params]  # the others were killed before they were drawn
    assert repeated
    for number in repeated:
        again = [n for n in params if n not in killed and params[n] == params[number]]
        assert len(again) == 1, f'trial {number} was not repeated'
