"""Which embedded storage survives kill -9? SQLite in write-ahead mode against Optuna's journal
file, the same work and the same kills.

    python tests/faults/compare_storages.py --kills 30

A process finishes trials as fast as it can and says the number of each one on a pipe after `tell`
came back; at a random moment it is killed. Then a
new process opens the storage and finishes one trial. Lost: trials that were said to be finished and
are not there.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

STORAGES = ('sqlite-wal', 'journal')


def open_one(kind, folder):
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if kind == 'sqlite-wal':
        from moe_expert.tuning.storage import open_storage

        storage = open_storage(f'sqlite:///{folder}/studies.db', None)
    else:
        from optuna.storages.journal import JournalFileBackend

        storage = optuna.storages.JournalStorage(JournalFileBackend(f'{folder}/studies.log'))
    return optuna.create_study(study_name='s', storage=storage, load_if_exists=True)


def work(kind, folder, trials):
    study = open_one(kind, folder)
    for _ in range(trials):
        trial = study.ask()
        x = trial.suggest_float('x', 0.0, 1.0)
        trial.set_user_attr('result', {'weights': 'w' * 4000, 'history': [x] * 40})
        study.tell(trial, x)
        print(trial.number, flush=True)


def one_kill(kind, folder, after):
    """What a kill cost.

    (trials lost, seconds until the next process had finished a trial, or None where it never did).
    """
    command = [sys.executable, __file__, '--work', kind, '--folder', str(folder)]
    with subprocess.Popen(
        [*command, '--trials', '1000000'], stdout=subprocess.PIPE, text=True
    ) as process:
        said = [process.stdout.readline()]
        time.sleep(after)
        os.kill(process.pid, signal.SIGKILL)
        said += process.stdout.read().splitlines()
    said = {int(s) for s in said if s.strip()}
    start = time.perf_counter()
    try:
        again = subprocess.run(
            [*command, '--trials', '1'], capture_output=True, text=True, timeout=120
        )
    except subprocess.TimeoutExpired:
        return len(said), None
    took = time.perf_counter() - start
    if again.returncode:
        return len(said), None
    finished = {
        t.number for t in open_one(kind, folder).get_trials(deepcopy=False) if t.state.is_finished()
    }
    return len(said - finished), took


def half_a_line(folder):
    "What the journal does with a record that was written in part."
    work('journal', folder, 2)
    path = Path(folder) / 'studies.log'
    path.write_bytes(path.read_bytes()[:-20])
    try:
        work('journal', folder, 1)
    except Exception as err:  # noqa: BLE001 whatever it is, it is the finding
        return f'{type(err).__name__}: {err}'
    return 'went on'


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--kills', type=int, default=30)
    p.add_argument('--work'), p.add_argument('--folder'), p.add_argument('--trials', type=int)
    args = p.parse_args()
    if args.work:
        return work(args.work, args.folder, args.trials)
    rng = random.Random(0)
    moments = [rng.uniform(0.0, 0.6) for _ in range(args.kills)]
    for kind in STORAGES:
        with tempfile.TemporaryDirectory() as folder:
            costs = [one_kill(kind, folder, after) for after in moments]
            took = [t for _, t in costs if t is not None]
            print(
                f'{kind}: {len(costs)} kills, '
                f'{sum(lost for lost, _ in costs)} finished trials lost, '
                f'{len(costs) - len(took)} times unusable after, '
                f'the next trial after {median(took):.1f} s (median), at most {max(took):.1f} s'
            )
    with tempfile.TemporaryDirectory() as folder:
        print('journal with half a line at the end:', half_a_line(folder))


if __name__ == '__main__':
    main()
