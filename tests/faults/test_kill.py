"""kill −9 at random moments, some inside a write; the same command goes on, and in the end nothing
tells that it was ever interrupted.

    MOE_EXPERT_KILLS=30 python -m pytest -m faults -s tests/faults/test_kill.py

runs all 30 kills and prints a table; without the variable there are 10.
"""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from killing import Nursery, assert_whole, finished_trials

KILLS = int(os.environ.get('MOE_EXPERT_KILLS', 10))
pytestmark = [pytest.mark.faults, pytest.mark.skipif(os.name == 'nt', reason='POSIX signals')]
STAGE2 = (
    'moe_expert.run_moe',
    ['--dataset', 'synthetic-200', '--n_trials', '12', '--epochs', '120'],
)
STAGE1 = (
    'moe_expert.run_expert_tuning',
    ['--dataset', 'synthetic-200', '--n_trials', '12', '--epochs', '120'],
)


TIMES = ('seconds', 'created', 'date', 'tested_at', 'tested_once')
SEALS = ('content_sha256', 'results_sha256')  # of content that holds times


def bare(path):
    "A result file apart from times and Optuna's numbers."

    def strip(value):
        if isinstance(value, dict):
            left_out = (*TIMES, *SEALS, 'optuna_number')
            return {k: strip(v) for k, v in value.items() if k not in left_out}
        return [strip(v) for v in value] if isinstance(value, list) else value

    return strip(json.loads(path.read_text()))


def contents(folder):
    "What must not depend on interruptions: checkpoints to the bit, records apart from times."
    return {
        p.name: p.read_bytes() if p.suffix == '.pt' else bare(p)
        for p in sorted(Path(folder).iterdir())
        if p.suffix in ('.pt', '.json')
    }


def prepared(tmp_path, stage, life):
    """→ (module, arguments, function that makes a folder in which the command can start.

    Stage 2 with tuned experts).
    """
    if stage == 1:
        return *STAGE1, lambda name: (tmp_path / name).mkdir() or tmp_path / name
    assert life(STAGE1[0], [*STAGE1[1], '--cache_dir', tmp_path / 'experts'])[0] == 0
    return *STAGE2, lambda name: Path(shutil.copytree(tmp_path / 'experts', tmp_path / name))


@pytest.fixture(scope='module')
def nursery(tmp_path_factory):
    log = tmp_path_factory.mktemp('nursery') / 'log.txt'
    with Nursery(log) as nursery:
        yield nursery
    print(log.read_text()[-3000:])


@pytest.mark.parametrize('stage', [1, 2])
def test_killed_at_random_moments_it_ends_like_one_that_was_not(tmp_path, nursery, stage):
    life = nursery.life
    module, argv, fresh = prepared(tmp_path, stage, life)
    whole = fresh('whole')
    code, seconds = life(module, [*argv, '--cache_dir', whole])
    assert code == 0
    expected, totals = contents(whole), finished_trials(whole)
    assert set(totals.values()) == {12}
    rng, kills, rounds = random.Random(stage), [], 0
    start = time.perf_counter()
    while len(kills) < KILLS:
        rounds += 1
        folder, before, code = fresh(f'round{rounds}'), {}, None
        while code != 0:
            inside = len(kills) % 5 in (1, 3)  # two of five inside a write or right after one
            how = (
                {}
                if len(kills) >= KILLS
                else dict(cut=rng.choice([1, 2, 3, 4, 5, 6]) + rng.choice([0, 0.5]))
                if inside
                else dict(after=rng.uniform(0, 0.8 * seconds))
            )
            code, _ = life(module, [*argv, '--cache_dir', folder], **how)
            assert code in (0, -signal.SIGKILL), code
            now = finished_trials(folder)
            assert_whole(folder)
            assert all(now.get(k, 0) >= n for k, n in before.items()) and all(
                now[k] <= totals[k] for k in now
            )  # none lost, none too many
            if code:
                kills.append((rounds, how, sum(before.values()), sum(now.values())))
            before = now
        assert contents(folder) == expected  # the same bits, trials, winners
        assert finished_trials(folder) == totals
    print(
        f'\nstage {stage}: {len(kills)} kills in {rounds} rounds, '
        f'{time.perf_counter() - start:.0f} s; lost: nothing; checkpoints equal to the bit'
    )
    for n, how, before, now in kills:
        print(f'  round {n}: killed {how}, finished trials {before} -> {now}')
    assert sum('cut' in how for _, how, *_ in kills) >= KILLS // 5
