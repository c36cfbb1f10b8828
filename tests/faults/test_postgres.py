"""Many workers on a PostgreSQL server, which `.ci/postgres` starts.

One is killed with −9, the others take its trials over, the total is exact.
"""

import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import psycopg
import pytest
import sqlalchemy
from campaign import ctl

from moe_expert import tune_experts
from moe_expert.data.synthetic import make_synthetic
from moe_expert.errors import ArtifactError
from moe_expert.experts.specs import BATCHES, Range
from moe_expert.tune_experts import ExpertTuner
from moe_expert.tuning import storage as tuning_storage
from moe_expert.tuning import studies as tuning_studies
from moe_expert.tuning import trials as tuning_trials
from moe_expert.tuning.records import load_expert
from moe_expert.tuning.storage import open_storage
from moe_expert.tuning.studies import finished

pytestmark = pytest.mark.postgres
FIRST, LATER = BATCHES
N_TRIALS, NAME = FIRST + 3 * LATER, 'synthetic-200'

WORKER = """
import json, sys, time
from moe_expert.tuning import storage as tuning_storage
from moe_expert.tuning import studies as tuning_studies
from moe_expert.tuning import trials as tuning_trials
from moe_expert import tune_experts
from moe_expert.tuning import records
from moe_expert.data.synthetic import make_synthetic
tuning_storage.HEARTBEAT, tuning_storage.GRACE, tuning_studies.WAIT = 1, 10, .2
url, folder, slow = sys.argv[1], sys.argv[2], sys.argv[3] == 'slow'
# the others cannot see whether its process lives: only its signs of life tell
if slow: tuning_trials._machine = lambda: 'elsewhere'
train = tune_experts.train_population
def train_population(data, configs, *args, **kwargs):
    print(json.dumps([[c.lr, c.weight_decay] for c in configs]), flush=True)
    if slow: time.sleep(600)
    return train(data, configs, *args, **kwargs)
tune_experts.train_population = train_population
write = records.save_checkpoint
records.save_checkpoint = lambda *args: (print('"writes"', flush=True), write(*args))[1]
tuner = tune_experts.ExpertTuner(make_synthetic(200), cache_dir=folder, storage=url, epochs=300)
result = tuner.tune_expert('expert1', n_trials=int(sys.argv[4]))
print(json.dumps(result['n_trials']), flush=True)
"""


@pytest.fixture
def url():
    "A database of its own on the server."
    server = os.environ.get('MOE_EXPERT_POSTGRES') or pytest.skip(
        'MOE_EXPERT_POSTGRES names no server: run .ci/postgres'
    )
    name = f'test_{uuid.uuid4().hex[:12]}'
    address = server.replace('postgresql', 'postgresql+psycopg', 1) + '/postgres'
    engine = sqlalchemy.create_engine(
        address, isolation_level='AUTOCOMMIT', pool_pre_ping=True
    )  # a test restarts the server
    with engine.connect() as c:
        c.exec_driver_sql(f'CREATE DATABASE {name}')
    yield f'{server}/{name}'
    with engine.connect() as c:
        c.exec_driver_sql(f'DROP DATABASE {name} WITH (FORCE)')


def start(url, folder, how='fast', n_trials=N_TRIALS):
    return subprocess.Popen(
        [sys.executable, '-c', WORKER, url, str(folder), how, str(n_trials)],
        stdout=subprocess.PIPE,
        text=True,
    )


def trained(lines):
    return [tuple(p) for line in lines if line.startswith('[') for p in json.loads(line)]


def test_four_workers_one_of_them_killed(url, tmp_path):
    victim = start(url, tmp_path, 'slow')
    lost = trained([victim.stdout.readline()])
    others = [start(url, tmp_path) for _ in range(3)]
    looking = ExpertTuner(make_synthetic(200), cache_dir=tmp_path, storage=url, epochs=300).study(
        'expert1'
    )
    while len(finished(looking)) < LATER:
        time.sleep(0.2)  # another has finished a batch: all four have work, or wait for the victim
    os.kill(victim.pid, signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL and lost
    lines = [w.communicate(timeout=240)[0].splitlines() for w in others]
    assert [w.returncode for w in others] == [0] * 3
    assert [json.loads(part[-1]) for part in lines] == [N_TRIALS] * 3  # all of them know the whole
    assert sum('"writes"' in part for part in lines) == 1  # and one wrote
    tuner = ExpertTuner(make_synthetic(200), cache_dir=tmp_path, storage=url, epochs=300)
    study = tuner.study('expert1')
    done = finished(study)
    params = [(t.params['lr'], t.params['weight_decay']) for t in done]
    assert len(done) == N_TRIALS == len(set(params)) and all(
        t.state.name == 'COMPLETE' for t in done
    )
    assert set(lost) <= set(params)  # taken over, not drawn anew
    again = [t for t in study.get_trials() if 'repeats' in t.user_attrs]
    assert (
        len({t.user_attrs['repeats'] for t in again if t.state.name == 'COMPLETE'})
        == len(lost)
        == FIRST
    )
    result = json.loads((tmp_path / f'{NAME}_expert1_tuning_results.json').read_text())
    feasible = [t['score'] for t in result['trials'] if t['feasible']]
    assert result['n_trials'] == N_TRIALS and result['best_score'] == max(feasible)
    assert load_expert(tmp_path, NAME, 'expert1')[1]['trial'] == result['best_trial']


def test_a_server_that_goes_away_and_comes_back(url, tmp_path, monkeypatch):
    """Restarted while a batch trains.

    Nothing happens. Stopped for good: an error that says so, and later the same call goes on.
    """

    if os.getuid() != 0:
        pytest.skip('stopping the server is done as root')
    options = (
        open(f'{os.environ["PG_DATA"]}/postmaster.opts')
        .read()
        .split(' ', 1)[1]
        .replace('"', '')
        .strip()
    )
    starting = (
        '-o',
        options.split(' ', 2)[2] if options.startswith('-D') else options,
        '-l',
        '/dev/null',
        'start',
    )
    train = tune_experts.train_population
    batches = []

    def with_a_stop(*args, **kwargs):
        batches.append(1)
        if len(batches) == 2:
            ctl('-m', 'fast', 'restart')
        if len(batches) == 3:
            ctl('-m', 'fast', 'stop')
        return train(*args, **kwargs)

    monkeypatch.setattr(tune_experts, 'train_population', with_a_stop)
    monkeypatch.setattr(tuning_trials, 'PATIENCE', (0.1,))
    monkeypatch.setenv('MOE_EXPERT_STORAGE_WAIT', '2')
    tuner = ExpertTuner(make_synthetic(200), cache_dir=tmp_path, storage=url, epochs=60)
    tuner.floor()
    batches.clear()
    try:
        with pytest.raises(ArtifactError, match='does not answer any more'):
            tuner.tune_expert('expert1', n_trials=N_TRIALS)
        with pytest.raises(ArtifactError, match='cannot be opened'):
            open_storage(url, None)
    finally:
        ctl(*starting)
    monkeypatch.setattr(tune_experts, 'train_population', train)
    assert len(finished(tuner.study('expert1'))) == FIRST + LATER
    assert tuner.tune_expert('expert1', n_trials=N_TRIALS)['n_trials'] == N_TRIALS


@pytest.mark.parametrize(
    'mode, where',
    [
        ('immediate', 'open_study'),
        ('fast', 'ask_batch'),
        ('immediate', 'draw'),
        ('immediate', 'tell'),
        ('fast', 'finished'),
    ],
)
def test_a_server_restarts_at_any_moment(url, monkeypatch, mode, where, caplog):
    "Always before the function, and between the trials of the study."
    monkeypatch.setenv('MOE_EXPERT_STORAGE_WAIT', '60')
    opened, calls = open_storage(url, None), []
    module = tuning_storage if where == 'open_study' else tuning_studies
    real = getattr(module, where)

    def restarting(*args, **kwargs):
        calls.append(1)
        if len(calls) in (1, 5):
            ctl('-m', mode, 'restart')
        return real(*args, **kwargs)

    monkeypatch.setattr(module, where, restarting)
    study = tuning_storage.open_study(opened, 'parabola', False)
    space = {'x': Range(-3.0, 3.0)}

    def train(batch):
        return [tuning_trials.Outcome(p['x'] ** 2) for p in batch]

    more = dict(seed=0, label='p', n_trials=8, batches=(4, 4), default={'x': 1.0})
    tuning_studies.run_study(study, space, train, **more)
    assert calls and [t.state.name for t in study.get_trials()] == ['COMPLETE'] * 8
    opened.engine.dispose()


@pytest.mark.parametrize('fault', ['stopped', 'no free slot'])
def test_opening_waits_for_the_server(url, fault, caplog, tmp_path):
    held = []
    if fault == 'stopped':
        words = shlex.split(Path(os.environ['PG_DATA'], 'postmaster.opts').read_text())[1:]
        ctl('-m', 'fast', 'stop')
        words = words[2:] if words[0] == '-D' else words
        back = lambda: ctl('-o', shlex.join(words), '-l', '/dev/null', 'start')
    else:
        with pytest.raises(psycopg.OperationalError):
            while len(held) < 1000:
                held.append(psycopg.connect(url))
        back = lambda: [c.close() for c in held]
    timer = threading.Timer(3, back)
    timer.start()
    try:
        with caplog.at_level(logging.WARNING, 'moe_expert'):
            opened = open_storage(url, None, wait=60)
    finally:
        timer.join()
    assert sum('waiting for up to' in r.message for r in caplog.records) == 1
    opened.engine.dispose()


def test_a_server_without_a_free_slot_is_named_in_the_end(url):
    held = []
    with pytest.raises(psycopg.OperationalError):
        while len(held) < 1000:
            held.append(psycopg.connect(url))
    try:
        with pytest.raises(ArtifactError, match='cannot be opened.*(too many clients|slots)'):
            open_storage(url, None, wait=2)
    finally:
        for c in held:
            c.close()


def test_wrong_addresses_on_a_real_server(url):
    with pytest.raises(ArtifactError, match='none_of_that_name'):
        open_storage(url.rsplit('/', 1)[0] + '/none_of_that_name', None)


def test_a_live_worker_is_not_robbed(url, tmp_path):
    "Its batch takes far longer than the time after which silence means death."
    slow = start(url, tmp_path, 'slow', FIRST + LATER)
    slow.stdout.readline()
    fast = start(url, tmp_path, n_trials=FIRST + LATER)
    for line in fast.stdout:
        if len(trained([line])) == LATER:
            break
    time.sleep(14)
    tuner = ExpertTuner(make_synthetic(200), cache_dir=tmp_path, storage=url, epochs=300)
    try:
        assert fast.poll() is None  # it waits
        states = [t.state.name for t in tuner.study('expert1').get_trials()]
        assert states.count('RUNNING') == FIRST
        assert not any('repeats' in t.user_attrs for t in tuner.study('expert1').get_trials())
    finally:
        slow.kill()
    assert json.loads(fast.communicate(timeout=60)[0].splitlines()[-1]) == FIRST + LATER
    slow.wait()
