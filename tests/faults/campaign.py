"""A seeded random campaign: workers that are killed, stopped and restarted, clocks that are shifted
and, on PostgreSQL, a server that restarts.

    MOE_EXPERT_SOAK=600 .ci/faults -s tests/faults/test_campaign.py
    MOE_EXPERT_SOAK=600 .ci/postgres -s tests/faults/test_campaign.py

`MOE_EXPERT_SOAK_SEED` gives another seed. Each round is one study, of one worker and of two to four
by turns. After it the total is exact, the winner is the best of all, and where one worker ran, its
files are those of a run that nothing interrupted.
"""

import json
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import time
import uuid
from collections import Counter
from pathlib import Path

import sqlalchemy
from killing import finished_trials
from test_kill import contents

N_TRIALS, NAME = 45, 'synthetic-200'
EVENTS = ('kill', 'stop', 'clock forward', 'clock back')
RESTARTS = ('restart fast', 'restart immediate')


def work(url, folder, log):
    "One worker, with heartbeats that are quicker and batches that are slower than usual."
    from moe_expert import tune_experts
    from moe_expert.data.synthetic import make_synthetic
    from moe_expert.tuning import storage as tuning_storage
    from moe_expert.tuning import studies as tuning_studies

    os.environ['MOE_EXPERT_STORAGE_WAIT'] = '120'
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1), os.dup2(said, 2)
    logging.basicConfig(level=logging.INFO)
    tuning_storage.HEARTBEAT, tuning_storage.GRACE, tuning_studies.WAIT = 1, 6, 0.2
    train = tune_experts.train_population

    def train_population(*args, **kwargs):
        time.sleep(0.5)
        return train(*args, **kwargs)

    tune_experts.train_population = train_population
    tuner = tune_experts.ExpertTuner(make_synthetic(200), cache_dir=folder, storage=url, epochs=40)
    tuner.tune_expert('expert1', n_trials=N_TRIALS)


def ctl(*args):
    "`pg_ctl` on the server of `.ci/postgres`."
    user = ['setpriv', '--reuid=postgres', '--regid=postgres', '--clear-groups']
    command = [f'{os.environ["PG_BIN"]}/pg_ctl', '-D', os.environ['PG_DATA'], '-s', '-w', *args]
    command = (user if os.getuid() == 0 else []) + command
    subprocess.run(command, check=True, cwd='/', stdout=subprocess.DEVNULL)


class Campaign:
    def __init__(self, seconds, seed, folder, server=None):
        self.seconds, self.rng, self.folder, self.server = (
            seconds,
            random.Random(seed),
            folder,
            server,
        )
        self.context = multiprocessing.get_context('forkserver')
        self.context.set_forkserver_preload(['moe_expert.tune_experts', 'optuna', 'test_kill'])
        self.seen, self.trials, self.lost, self.dead, self.rounds = Counter(), 0, 0, 0, 0
        self.alone, self.problems = 0, []  # rounds of one worker; what went wrong

    def engine(self, url):
        address = url.replace('postgresql', 'postgresql+psycopg', 1)
        return sqlalchemy.create_engine(
            address, isolation_level='AUTOCOMMIT', poolclass=sqlalchemy.pool.NullPool
        )

    def start(self, url, folder):
        args = (url, str(folder), f'{folder}.log')
        process = self.context.Process(target=work, args=args)
        process.start()
        return process

    def run(self):
        self.whole = self.folder / 'whole'
        process = self.start(None, self.whole)
        process.join(120)
        assert process.exitcode == 0, Path(f'{self.whole}.log').read_text()
        end = time.monotonic() + self.seconds
        while time.monotonic() < end or self.rounds < 2:
            self.rounds += 1
            self.round(self.folder / f'round{self.rounds}')
        return self

    def round(self, folder):
        folder.mkdir()
        url, name = None, f'soak_{uuid.uuid4().hex[:12]}'
        if self.server:
            url = f'{self.server}/{name}'
            with self.engine(f'{self.server}/postgres').connect() as c:
                c.exec_driver_sql(f'CREATE DATABASE {name}')
        size = 1 if self.rounds % 2 else self.rng.choice([2, 3, 4])
        self.alone += size == 1
        end = time.monotonic() + min(20, self.seconds / 2)  # of the events: then it may finish
        workers = [self.start(url, folder) for _ in range(size)]
        deadline = time.monotonic() + 240
        while any(w.is_alive() for w in workers) and time.monotonic() < deadline:
            time.sleep(self.rng.uniform(1, 4))
            if time.monotonic() < end:
                self.event(workers, url, folder)
            for w in workers:
                w.join(0)
        self.judge(folder, size, workers, url)
        if self.server:
            with self.engine(f'{self.server}/postgres').connect() as c:
                c.exec_driver_sql(f'DROP DATABASE {name} WITH (FORCE)')

    def event(self, workers, url, folder):
        what = self.rng.choice(EVENTS + (RESTARTS if self.server else ()))
        i = self.rng.randrange(len(workers))
        alive = workers[i].is_alive()
        if what == 'kill' and alive:
            workers[i].kill()
            workers[i].join()
            workers[i] = self.start(url, folder)
        elif what == 'stop' and alive:
            os.kill(workers[i].pid, signal.SIGSTOP)
            time.sleep(self.rng.choice([1, 4, 9]))  # some for longer than the others wait
            os.kill(workers[i].pid, signal.SIGCONT)
        elif what.startswith('clock'):
            self.shift(3600 if what.endswith('back') else -3600, url, folder)
        elif what.startswith('restart'):
            ctl('-m', what.split()[1], 'restart')
        else:
            return
        self.seen[what] += 1

    def shift(self, seconds, url, folder):
        "All heartbeats older or younger: what another clock of the database would make of them."
        path = folder / f'{NAME}_studies.db'
        engine = self.engine(url) if url else sqlalchemy.create_engine(f'sqlite:///{path}')
        to = (
            f"heartbeat + interval '{seconds} seconds'"
            if url
            else f"strftime('%Y-%m-%d %H:%M:%f', heartbeat, '{seconds} seconds')"
        )
        if not url and not path.exists():
            return
        with engine.begin() as c:
            if sqlalchemy.inspect(c).has_table('trial_heartbeats'):
                c.exec_driver_sql(f'UPDATE trial_heartbeats SET heartbeat = {to}')
        engine.dispose()

    def judge(self, folder, size, workers, url):
        for w in workers:
            if w.exitcode != 0:
                self.dead += 1
                log = Path(f'{folder}.log').read_text()[-3000:]
                self.problems.append(f'{folder.name}: exit code {w.exitcode}\n{log}')
                w.kill()
        counted = self.counted(folder, url)
        self.trials += counted
        self.lost += abs(N_TRIALS - counted)
        path = folder / f'{NAME}_expert1_tuning_results.json'
        if not path.exists():
            return self.problems.append(f'{folder.name}: no result')
        result = json.loads(path.read_text())
        scores = [t['score'] for t in result['trials'] if t['feasible']]
        if result['n_trials'] != N_TRIALS or result['best_score'] != max(scores):
            self.problems.append(f'{folder.name}: the total or the winner is wrong')
        if size == 1 and contents(folder) != contents(self.whole):
            self.problems.append(f'{folder.name}: one worker, other files')

    def counted(self, folder, url):
        "Trials that count, read without any code of ours."
        if not url:
            return sum(finished_trials(folder).values())
        query = """SELECT COUNT(*) FROM trials WHERE state = 'COMPLETE' OR (state = 'FAIL' AND
            trial_id IN (SELECT trial_id FROM trial_user_attributes WHERE key = 'error'))"""
        with self.engine(url).connect() as c:
            return c.exec_driver_sql(query).scalar()

    def table(self):
        rows = [
            ('rounds', self.rounds),
            ('of one worker', self.alone),
            *sorted(self.seen.items()),
            ('trials', self.trials),
        ]
        rows += [('trials lost or too many', self.lost), ('dead workers', self.dead)]
        return '\n'.join(f'{name:<24}{n:>6}' for name, n in rows)
