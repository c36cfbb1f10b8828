"""The loop behind every study.

The storage, the draws, whose trial it is, many workers, failures, who wins.
"""

import json
import logging
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from types import SimpleNamespace

import optuna
import pytest
import sqlalchemy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState

from moe_expert.errors import ArtifactError, MoEExpertError
from moe_expert.experts.specs import Range
from moe_expert.mixture.verify import studies_of
from moe_expert.parameters import check
from moe_expert.tuning import storage as tuning_storage
from moe_expert.tuning import studies as tuning_studies
from moe_expert.tuning import trials as tuning_trials
from moe_expert.tuning.folder import ExpertFiles
from moe_expert.tuning.storage import open_storage, open_study, pack, unpack
from moe_expert.tuning.studies import (
    Draws,
    Outcome,
    finished,
    is_out_of_memory,
    run_study,
    tell,
    trial_record,
    winner,
)


def test_weights_survive_the_storage_to_the_bit():
    state = {
        'hidden.weight': torch.randn(4, 7, dtype=torch.float64) * 1e-30,
        'out.weight': torch.randn(2, 4, dtype=torch.float64),
    }
    again = unpack(json.loads(json.dumps(pack(state))))
    for k, v in state.items():
        assert torch.equal(again[k], v) and again[k].dtype == torch.float64
    single = {k: v.float() for k, v in state.items()}
    assert all(torch.equal(v.float(), single[k]) for k, v in unpack(pack(single)).items())


# --- whose trial it is, and which count -----------------------------------------------------------

SPACE = dict(x=Range(-3.0, 3.0), y=Range(-3.0, 3.0))


def parabola(batch):
    return [Outcome((p['x'] - 1) ** 2 + p['y'] ** 2, {'c': -p['x'] - p['y']}) for p in batch]


def run(study, train=parabola, n_trials=12, **more):
    return run_study(
        study,
        SPACE,
        train,
        **dict(
            seed=0, label='parabola', default=dict(x=0.0, y=0.0), n_trials=n_trials, batches=(4, 4)
        )
        | more,
    )


@pytest.fixture
def address(tmp_path):
    return f'sqlite:///{tmp_path}/studies.db'


@pytest.fixture
def study(address):
    return open_study(open_storage(address, None, wait=300), 'parabola', False)


def bare(study):
    "Trials apart from times and Optuna's numbers."
    return [
        {k: v for k, v in trial_record(t, i).items() if k not in ('seconds', 'optuna_number')}
        for i, t in enumerate(finished(study))
    ]


@pytest.fixture(scope='module')
def whole():
    "Twelve trials that nothing interrupted."
    study = open_study(optuna.storages.InMemoryStorage(), 'parabola', False)
    run(study)
    return bare(study)


def dead_worker():
    process = subprocess.Popen([sys.executable, '-c', ''])
    process.wait()
    return f'{tuning_trials._machine()}:{process.pid}:word'


def clock_jumps(study, seconds):
    "The clock of the database is set forward, so that all heartbeats are older."
    storage = study._storage._backend
    shift = "UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, '%d seconds')"
    with storage.engine.begin() as connection:
        connection.exec_driver_sql(shift % -seconds)


def running(study, worker, params=None):
    "A trial that another worker left running."
    template = optuna.trial.create_trial(
        state=TrialState.RUNNING,
        params=params or {},
        distributions=dict.fromkeys(SPACE, FloatDistribution(-3.0, 3.0)) if params else {},
        user_attrs={'worker': worker},
    )
    trial_id = study._storage.create_new_trial(study._study_id, template)
    study._storage.record_heartbeat(trial_id)
    return study._storage.get_trial(trial_id).number


def states(study):
    return [t.state.name for t in study.get_trials()]


def test_trials_of_dead_processes_of_this_machine_are_taken_over_without_a_minute(study, whole):
    worker = dead_worker()
    for t in whole[:3]:
        running(study, worker, t['params'])
    running(study, worker)  # killed before it was drawn
    clock_jumps(study, 30)
    run(study)
    assert states(study)[:4] == ['FAIL'] * 4 and bare(study) == whole


@pytest.mark.parametrize('drawn', [0, 3, 7])
def test_started_again_at_once_a_study_waits_for_its_own_dead_process(
    study, whole, monkeypatch, drawn
):
    "Its heartbeat is not missing yet; what is drawn meanwhile would take the place of its trials."
    monkeypatch.setattr(tuning_storage, 'HEARTBEAT', 0.8)
    monkeypatch.setattr(tuning_studies, 'WAIT', 0.02)
    worker = dead_worker()
    for t in whole[:drawn]:
        running(study, worker, t['params'])
    running(study, worker)  # killed before it was drawn
    run(study)
    assert states(study)[: drawn + 1] == ['FAIL'] * (drawn + 1) and bare(study) == whole


@pytest.mark.parametrize('drawn', [True, False])
def test_a_process_that_cannot_be_found_but_sends_heartbeats_lives(study, drawn):
    "A copy of a virtual machine, boot id and all, has workers of its own."
    running(study, dead_worker(), dict(x=1.0, y=1.0) if drawn else None)
    watch = tuning_trials.Watch()
    assert [tuning_trials.requeue(study, watch) for _ in range(3)] == [0] * 3
    clock_jumps(study, 30)
    assert tuning_trials.requeue(study, watch) == 1


def test_machines_of_the_same_name_are_told_apart(study, monkeypatch):
    "Two machines called `ubuntu`, each in its first container: only the boot id differs."
    with monkeypatch.context() as patch:
        real = tuning_trials.Path.read_text
        patch.setattr(
            tuning_trials.Path,
            'read_text',
            lambda path: '0b-00\n' if path.name == 'boot_id' else real(path),
        )
        other = dead_worker()
    running(study, other)
    clock_jumps(study, 30)
    assert not tuning_trials._process_is_gone(other)
    assert tuning_trials.requeue(study) == 0
    assert tuning_trials._process_is_gone(dead_worker())


@pytest.mark.parametrize('seconds', [3600, -3600])
def test_a_clock_that_jumps_robs_nobody(study, monkeypatch, seconds):
    "The live worker is silent for a moment only, the dead one is noticed all the same."
    live, dead = (running(study, f'elsewhere:{i}:a') for i in (1, 2))
    live_id, dead_id = (study.get_trials()[n]._trial_id for n in (live, dead))
    now, jump, last = 0.0, 0, {live_id: 0, dead_id: 0}  # by the clock of the database

    def heard(storage, ids):
        return {i: (last[i], now + jump - last[i]) for i in ids}

    monkeypatch.setattr(tuning_trials, 'heartbeats', heard)
    monkeypatch.setattr(tuning_trials.time, 'monotonic', lambda: now)
    watch = tuning_trials.Watch()
    for beat in range(1, 12):
        now = 10.0 * beat
        jump = seconds if beat > 3 else 0
        tuning_trials.requeue(study, watch)  # before the next heartbeat: the worst moment
        assert study.get_trials()[live].state == TrialState.RUNNING
        last[live_id] = now + jump
    assert study.get_trials()[dead].state == TrialState.FAIL


@pytest.mark.parametrize('at', ['create', 'take', 'x', 'y'])
def test_a_trial_that_is_closed_while_it_is_drawn_is_dropped(study, monkeypatch, at, caplog):
    if at == 'take':
        study.enqueue_trial(dict(x=0.5, y=0.5))
    storage, closed = study._storage, []

    def closing(name, when):
        real = getattr(storage, name)

        def call(trial_id, *args, **kwargs):
            if not closed and when(*args):
                closed.append(trial_id)
                storage.set_trial_state_values(trial_id, TrialState.FAIL)
            return real(trial_id, *args, **kwargs)

        monkeypatch.setattr(storage, name, call)

    if at == 'create':
        closing('record_heartbeat', lambda: True)
    elif at == 'take':
        closing('set_trial_user_attr', lambda key, value: key == 'worker')
    else:
        closing('set_trial_param', lambda name, *_: name == at)
    run(study)
    assert closed and len(finished(study)) == 12
    assert [t.state for t in study.get_trials() if t._trial_id in closed] == [TrialState.FAIL]
    assert sum(t.state == TrialState.COMPLETE for t in study.get_trials()) == 12


def test_signs_of_life_begin_with_the_draw(study, monkeypatch):
    "Each draw takes longer than two heartbeats."
    beats, real, ids = [], study._storage.record_heartbeat, []
    monkeypatch.setattr(tuning_trials, '_heartbeat_interval', lambda study: 0.02)
    monkeypatch.setattr(study._storage, 'record_heartbeat', lambda i: (beats.append(i), real(i)))

    def slow(*args):
        time.sleep(0.1)
        ids.append(args[2]._trial_id)
        assert beats.count(ids[-1]) > 1
        return draw(*args)

    draw = tuning_studies.draw
    monkeypatch.setattr(tuning_studies, 'draw', slow)
    run(study, n_trials=4)
    assert len(ids) == 4


@pytest.mark.parametrize(
    'worker', [f'{tuning_trials._machine()}:{os.getppid()}:a', 'elsewhere:1:a']
)
def test_trials_of_others_are_taken_over_only_without_a_sign_of_life(study, monkeypatch, worker):
    monkeypatch.setattr(tuning_studies, 'WAIT', 0.05)
    one, half = running(study, worker, dict(x=1.0, y=1.0)), running(study, worker)
    waits = []
    monkeypatch.setattr(
        tuning_studies.time,
        'sleep',
        lambda s: waits.append(s) if len(waits) < 3 else (_ for _ in ()).throw(KeyboardInterrupt),
    )
    with pytest.raises(KeyboardInterrupt):
        run(study, n_trials=4)
    assert (
        states(study)[:2] == ['RUNNING'] * 2 and len(finished(study)) == 2
    )  # the other two are theirs
    monkeypatch.undo()
    monkeypatch.setattr(tuning_storage, 'GRACE', 1)
    run(study, n_trials=4)
    trials = study.get_trials()
    assert (trials[one].state, trials[half].state) == (TrialState.FAIL, TrialState.FAIL) and len(
        finished(study)
    ) == 4
    assert [
        t.params
        for t in trials
        if t.user_attrs.get('repeats') == one and t.state == TrialState.COMPLETE
    ] == [dict(x=1.0, y=1.0)]


@pytest.mark.parametrize('told', [0, 1, 3])
@pytest.mark.parametrize('at', [1, 2, 3])
def test_an_interrupted_batch_is_repeated_whole_in_its_company(study, whole, monkeypatch, at, told):
    """Killed while a batch is trained or told.

    The same configurations train side by side again, in their order; none counts twice.
    """
    batches = []

    def train(batch):
        batches.append(batch)
        return parabola(batch)

    def stopping(*args):
        if len(batches) in (at, at + 1) and len(finished(study)) == 4 * (at - 1) + told:
            raise KeyboardInterrupt
        return tell(*args)

    with monkeypatch.context() as patch:
        patch.setattr(tuning_studies, 'tell', stopping)
        with pytest.raises(KeyboardInterrupt):
            run(study, train)
        assert len(finished(study)) == 4 * (at - 1) + told
        with pytest.raises(KeyboardInterrupt):
            run(study, train)  # and once more
    run(study, train)
    assert (
        bare(study) == whole
        and batches[at - 1] == batches[at] == batches[at + 1]
        and len(batches) == 5
    )


@given(moments=st.lists(st.integers(0, 60), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_wherever_a_study_is_interrupted_it_ends_the_same(whole, moments):
    "Storage writes are counted; at the given ones the process dies without cleaning up."
    storage = optuna.storages.InMemoryStorage()
    study = open_study(storage, 'parabola', False)
    names = (
        'create_new_trial',
        'set_trial_param',
        'set_trial_user_attr',
        'set_trial_state_values',
        'set_study_user_attr',
        'set_trial_system_attr',
    )
    for moment in (*moments, None):
        with pytest.MonkeyPatch.context() as patch:
            left = [moment]

            def dying(real, left=left):
                def write(*args, **kwargs):
                    if left[0] is not None:
                        left[0] -= 1
                    if left[0] is not None and left[0] < 0:
                        raise SystemExit
                    return real(*args, **kwargs)

                return write

            for name in names:
                patch.setattr(storage, name, dying(getattr(storage, name)))
            patch.setattr(tuning_studies, 'release', lambda study: None)
            try:
                run(study)
            except SystemExit:
                pass
    assert bare(study) == whole


def test_a_trial_asks_the_database_about_thirty_things(study):
    """A sampler that reads the storage itself, and `Trial`, which reads it on each write, ask 130.

    A storage far away answers slowly, and SQLAlchemy is not cheap even for one nearby.
    """
    statements = []
    engine = study._storage._backend.engine
    sqlalchemy.event.listen(
        engine, 'before_cursor_execute', lambda *args: statements.append(args[2])
    )
    run(study, n_trials=20, batches=(10, 10))
    assert len(statements) <= 35 * 20


def test_a_trial_that_was_taken_over_is_not_told(study, caplog):
    "A worker that slept for too long drops its result; the trial counts once."

    def train(batch):
        for t in study.get_trials(states=(TrialState.RUNNING,)):
            tuning_trials.close_trial(study, t)  # what another worker would have done
        return parabola(batch)

    with caplog.at_level(logging.WARNING, 'moe_expert'):
        batch = tuning_studies.ask_batch(Draws(study, SPACE, 0, 'parabola', 4, None, (4, 4)))
        tuning_studies._run_batch(study, train, batch)
    assert not finished(study) and caplog.text.count('closed by another worker') == 4
    run(study, n_trials=4)
    assert len(finished(study)) == 4


def test_queued_trials_come_first_and_count(study):
    study.enqueue_trial(dict(x=2.5, y=-2.5))
    run(study, n_trials=4)
    assert finished(study)[0].params == dict(x=2.5, y=-2.5) and len(study.get_trials()) == 4


def test_fewer_trials_than_are_owed(study, whole):
    def stop(batch):
        raise KeyboardInterrupt

    run(study, n_trials=4)
    with pytest.raises(KeyboardInterrupt):
        run(study, stop)
    run(study, n_trials=6)
    assert bare(study) == whole[:6]
    run(study)
    assert [t['params'] for t in bare(study)[:8]] == [t['params'] for t in whole[:8]] and len(
        finished(study)
    ) == 12


# --- many workers ---------------------------------------------------------------------------------

WORKER = """
import json, sys, time
from moe_expert.tuning import studies as tuning_studies
from moe_expert.tuning import trials as tuning_trials
from moe_expert.tuning import storage as tuning_storage
from moe_expert.tuning.studies import *
from moe_expert.tuning.trials import Outcome
from moe_expert.tuning.storage import open_storage, open_study
from moe_expert.experts.specs import Range
tuning_storage.HEARTBEAT, tuning_storage.GRACE, tuning_studies.WAIT = 1, 4, .1
address, n_trials, batch_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
seconds = float(sys.argv[4])
def train(batch):
    print(json.dumps(batch), flush=True)
    time.sleep(seconds)
    return [Outcome((p['x'] - 1) ** 2 + p['y'] ** 2) for p in batch]
study = open_study(open_storage(address, None), 'shared', False)
space = dict(x=Range(-3., 3.), y=Range(-3., 3.))
run_study(study, space, train, seed=0, label='shared', n_trials=n_trials,
          batches=(batch_size, batch_size), default=dict(x=0., y=0.))
assert len(finished(study)) == n_trials, 'a worker left before the study had its trials'
"""


def start(address, n_trials, batch_size, seconds):
    return subprocess.Popen(
        [sys.executable, '-c', WORKER, address, str(n_trials), str(batch_size), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
    )


def trained(process):
    "Configurations that a worker trained, after it ended well."
    out = process.communicate(timeout=120)[0]
    assert process.returncode == 0
    return [p for line in out.splitlines() for p in json.loads(line)]


@pytest.mark.faults
def test_workers_share_the_trials_of_a_file(address):
    """Started at the same moment on a file that is not there yet.

    Each configuration is trained once, by one of them.
    """
    done = [trained(p) for p in [start(address, 24, 2, 0.2) for _ in range(3)]]
    study = open_study(open_storage(address, None), 'shared', False)
    assert len(finished(study)) == 24 == sum(map(len, done))
    params = [tuple(t.params.values()) for t in finished(study)]
    assert len(set(params)) == 24 and set(params) == {
        tuple(p.values()) for part in done for p in part
    }
    assert params[0] == (0.0, 0.0) and all(done)


@pytest.mark.faults
def test_a_live_worker_with_a_long_batch_is_not_robbed(address):
    "It trains for more than twice the time after which a silent worker counts as dead."
    slow = start(address, 4, 2, 9)
    slow.stdout.readline()
    fast = start(address, 4, 2, 0)
    assert len(trained(fast)) == 2
    slow.communicate(timeout=60)
    study = open_study(open_storage(address, None), 'shared', False)
    assert slow.returncode == 0 and states(study) == ['COMPLETE'] * 4


# --- training that fails --------------------------------------------------------------------------


@pytest.mark.parametrize(
    'error',
    [
        ValueError('no'),
        ZeroDivisionError('no'),
        torch.OutOfMemoryError('no'),
        MemoryError('no'),
        RuntimeError("can't allocate memory: no"),
    ],
)
def test_a_configuration_that_raises_is_a_failed_trial_and_the_study_goes_on(study, whole, error):
    def train(batch):
        if any(p == whole[6]['params'] for p in batch):
            raise error
        return parabola(batch)

    run(study, train, n_trials=8)
    records = bare(study)
    assert [t['state'] for t in records] == ['complete'] * 6 + ['fail'] + ['complete']
    assert records[6]['error'].startswith(type(error).__name__) and 'no' in records[6]['error']
    assert ('batch_size' in records[6]['error']) == is_out_of_memory(error)
    assert records[:6] == whole[:6] and records[7] == whole[7]


def test_too_little_memory_for_a_batch_is_enough_for_its_halves(study, whole):
    sizes = []

    def train(batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError('CUDA out of memory')
        return parabola(batch)

    run(study, train)
    assert bare(study) == whole and sizes == [4, 2, 2] * 3


def test_our_own_errors_end_the_study_and_count_no_trial(study):
    def train(batch):
        raise MoEExpertError('wrong data')

    with pytest.raises(MoEExpertError, match='wrong data'):
        run(study, train)
    assert not finished(study) and set(states(study)) == {'FAIL'}


@pytest.mark.parametrize(
    'score, constraint', [(math.nan, 0.0), (math.inf, 0.0), (None, 0.0), (1.0, math.nan)]
)
def test_what_is_not_a_number_fails(study, score, constraint):
    run(study, lambda batch: [Outcome(score, {'c': constraint}) for _ in batch], n_trials=4)
    with pytest.raises(
        MoEExpertError, match='all 4 trials failed; the first one: (score|c): not a finite number'
    ):
        winner(bare(study), False)


# --- storages that fail ---------------------------------------------------------------------------


def test_a_storage_that_fails_for_a_moment_loses_nothing(study, whole, monkeypatch):
    monkeypatch.setattr(tuning_trials, 'PATIENCE', (0, 0, 0))
    real, calls = study._storage.set_trial_state_values, []

    def failing(trial_id, state, values=None):
        calls.append(state)
        if state == TrialState.COMPLETE and len(calls) % 4:
            raise StorageInternalError('away')
        return real(trial_id, state, values)

    monkeypatch.setattr(study._storage, 'set_trial_state_values', failing)
    run(study)
    assert bare(study) == whole


def lost(words='server closed the connection unexpectedly'):
    return sqlalchemy.exc.OperationalError(None, None, Exception(words))


@pytest.mark.slow
@pytest.mark.parametrize('answered', [True, False], ids=['answer lost', 'not done'])
@given(moments=st.lists(st.integers(0, 130), min_size=1, max_size=5))
@settings(max_examples=5, deadline=None)
def test_wherever_the_server_restarts_the_study_is_the_same(
    tmp_path_factory, whole, answered, moments
):
    "At these calls the connection is lost: before the write, or between it and its answer."
    folder = tmp_path_factory.mktemp('restarts')
    opened = open_storage(f'sqlite:///{folder}/studies.db', None, wait=300)
    calls = [0]

    def losing(real):
        def call(*args, **kwargs):
            calls[0] += 1
            if calls[0] - 1 not in moments:
                return real(*args, **kwargs)
            if answered:
                real(*args, **kwargs)
            raise lost()

        return call

    names = [n for n in vars(optuna.storages.BaseStorage) if n[:4] in ('set_', 'get_')]
    private = ['_create_new_trial', '_set_trial_param', '_get_trials', 'record_heartbeat']
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning_storage.time, 'sleep', lambda s: None)
        for name in (*names, *private, 'create_new_study'):
            patch.setattr(opened, name, losing(getattr(opened, name)))
        study = open_study(opened, 'parabola', False)
        run(study)
        assert bare(study) == whole
    assert calls[0] > 100 and all(t.state.is_finished() for t in study.get_trials())
    opened.engine.dispose()


@pytest.mark.parametrize(
    'words, state, passes',
    [
        ('connection refused', None, True),
        ('FATAL:  sorry, too many clients already', None, True),
        ('FATAL:  remaining connection slots are reserved', None, True),
        ('FATAL:  the database system is shutting down', None, True),
        ('VERBINDUNGSFEHLER', None, True),
        ('terminating connection due to administrator command', '57P01', True),
        ('deadlock detected', '40P01', True),
        ('FATAL:  database "x" does not exist', None, False),
        ('FATAL:  password authentication failed for user "me"', None, False),
        ('No space left on device', '53100', False),
        ('relation "trials" does not exist', '42P01', False),
    ],
)
def test_what_passes_is_told_from_what_lasts(words, state, passes):
    err = lost(words)
    err.orig.sqlstate = state
    try:
        raise StorageInternalError('during the commit') from err
    except StorageInternalError as outer:
        assert (tuning_storage.interruption(outer) is err) == passes


def test_waiting_for_a_server_is_said_once_and_ends_with_its_reason(study, caplog, monkeypatch):
    run(study, n_trials=4)
    outages = study._storage.outages
    outages.patience = 1.5

    def gone(*args, **kwargs):
        raise StorageInternalError('during the commit') from lost('sorry, too many clients already')

    for name in ('_get_trials', 'set_trial_state_values', 'record_heartbeat'):
        monkeypatch.setattr(study._storage._backend, name, gone)
    start = time.monotonic()
    with caplog.at_level(logging.WARNING, 'moe_expert'):
        with pytest.raises(ArtifactError, match='does not answer any more.*too many clients'):
            run(study)
    assert 1.5 <= time.monotonic() - start < 10
    assert sum('waiting for up to' in r.message for r in caplog.records) == 1


def test_ctrl_c_gets_through_while_a_server_is_away(study, monkeypatch):
    def gone(*args, **kwargs):
        raise lost()

    monkeypatch.setattr(study._storage._backend, '_get_trials', gone)
    monkeypatch.setattr(tuning_storage.time, 'sleep', lambda s: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            run(study)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize('url', ['mysql://me@host/x', 'mariadb+pymysql://me@host/x', 'mssql://h/x'])
def test_databases_that_are_not_tested_are_refused_by_name(url):
    name = 'MySQL' if url[0:2] in ('my', 'ma') else 'mssql'
    with pytest.raises(ArtifactError, match=f'^{name} cannot be .* use PostgreSQL'):
        open_storage(url, None)


@pytest.mark.parametrize('seconds', ['soon', '-1', 'inf', 'nan'])
def test_a_waiting_time_that_is_none(monkeypatch, seconds):
    monkeypatch.setenv('MOE_EXPERT_STORAGE_WAIT', seconds)
    with pytest.raises(ArtifactError, match=f'MOE_EXPERT_STORAGE_WAIT={seconds} is not a number'):
        open_storage('sqlite:///x.db', None)


def test_a_storage_that_is_gone_is_an_error_that_says_so(study, monkeypatch):
    monkeypatch.setattr(tuning_trials, 'PATIENCE', ())

    def gone(*args, **kwargs):
        raise StorageInternalError('gone')

    run(study, n_trials=4)
    with monkeypatch.context() as patch:
        for name in ('set_trial_user_attr', 'set_trial_state_values', 'get_all_trials'):
            patch.setattr(study._storage, name, gone)
        with pytest.raises(
            ArtifactError,
            match='parabola .sqlite:.*studies.db. does not answer.*gone.*'
            'start the same command again',
        ):
            run(study)
    run(study)
    assert len(finished(study)) == 12


@pytest.mark.parametrize(
    'url',
    [
        'sqlite://',
        'sqlite:///:memory:',
        'nothing',
        'mongo://x/y',
        'sqlite:////no/such/folder/a.db',
        '',
    ],
)
def test_addresses_that_cannot_be_a_storage(url):
    with pytest.raises(ArtifactError):
        open_storage(url, None)


@pytest.mark.parametrize(
    'address',
    [
        'postgresql+psycopg://me:{}@127.0.0.1:1/none',
        'postgres://:{}@127.0.0.1:1/none',
        'nonsense://me:{}@host/none',
        'postgresql://127.0.0.1:1/none?user=me&password={}',
        'postgresql://me@127.0.0.1:1/none?sslmode=prefer&sslpassword={}',
        'me:{}@host/none',
        '{}',
    ],
)
@pytest.mark.parametrize('password', ['secret', 'my@secret', 'a:b/secret', 'my secret', '%73ecret'])
def test_passwords_are_not_shown(address, password):
    with pytest.raises(ArtifactError) as error:
        open_storage(address.replace('{}', password), None)
    told = ''.join(traceback.format_exception(error.value))
    told += repr(check('tune', dict(storage=address.replace('{}', password))))
    assert 'secret' not in told and 'my s' not in told and 'my@' not in told


def test_a_storage_that_answers_hides_its_password_too():
    "Even where a driver repeats the address when a query fails."
    url = sqlalchemy.engine.make_url('postgresql://me:secret@host/none?sslpassword=hidden')
    engine = SimpleNamespace(url=url)
    with pytest.raises(ArtifactError) as error:
        with tuning_storage.storage_errors('people', SimpleNamespace(engine=engine)):
            raise StorageInternalError('lost postgresql://me:secret@host/none?sslpassword=hidden')
    assert 'secret' not in str(error.value) and 'hidden' not in str(error.value)
    assert '//me:***@host/none?sslpassword=***' in str(error.value)


@pytest.mark.parametrize(
    'address, installed, missing',
    [
        ('postgresql+pg8000://me@host/none', (), r'pg8000 is missing \(pip install pg8000\)'),
        ('postgresql+psycopg2://me@h/none', ('psycopg',), r'psycopg2 .* install psycopg2-binary\)'),
        ('postgresql://me@host/none', (), r'psycopg .* install "moe_expert\[postgres\]"\)'),
    ],
)
def test_the_driver_that_is_missing_is_named(monkeypatch, address, installed, missing):
    for name in {'pg8000', 'psycopg', 'psycopg2'} - set(installed):
        for module in [m for m in sys.modules if m.split('.')[0] == name]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, name, None)
    spec = lambda name: object() if name in installed else None
    monkeypatch.setattr(tuning_storage, 'find_spec', spec)
    with pytest.raises(ArtifactError, match=f'its driver {missing}'):
        open_storage(address, None)


@pytest.mark.parametrize('name', ['what?', '{data}', '50%41', 'a#b@c:d', '?mode=memory&uri=true'])
def test_names_of_folders(tmp_path, monkeypatch, name):
    "The oldest SQLAlchemy cut a file's name at the ?, and Optuna fills what stands in braces."
    folder = tmp_path / name
    folder.mkdir()
    files = ExpertFiles(folder, 'people')
    storage = open_storage(None, files)
    open_study(storage, 'people-example', True)
    storage.engine.dispose()
    assert files.studies.is_file() and list(tmp_path.iterdir()) == [folder]
    monkeypatch.setattr(tempfile, 'tempdir', str(folder))  # `verify` reads a copy there
    with studies_of(files) as study:
        assert study('people-example').study_name == 'people-example'


def test_a_file_that_is_no_database_is_named_and_left_alone(tmp_path):
    path = tmp_path / 'studies.db'
    path.write_bytes(b'no database at all' * 100)
    with pytest.raises(ArtifactError, match='studies.db cannot be opened.*not a database'):
        open_storage(f'sqlite:///{path}', None)
    assert path.read_bytes() == b'no database at all' * 100
