"""Full disks, read-only folders, old, damaged and hostile files, storages that vanish, two at
once.

A clear message, nothing else damaged.
"""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from killing import Nursery, assert_whole, finished_trials

from moe_expert.errors import ArtifactError
from moe_expert.tune_experts import ExpertTuner
from moe_expert.tuning.artifacts import load_checkpoint
from moe_expert.tuning.records import load_expert

pytestmark = [pytest.mark.faults, pytest.mark.skipif(os.name == 'nt', reason='POSIX')]
NAME = 'synthetic-200'
MODULE = 'moe_expert.run_expert_tuning'
ARGS = ['--dataset', NAME, '--n_trials', '12', '--epochs', '60', '--expert', 'expert1']
COMMAND = ['-m', MODULE, *ARGS]
LOG = {}


@pytest.fixture(scope='module', autouse=True)
def nursery(tmp_path_factory):
    LOG['path'] = tmp_path_factory.mktemp('nursery') / 'log.txt'
    with Nursery(LOG['path']) as LOG['nursery']:
        yield LOG['nursery']


def tune(folder, *more, largest=None):
    "Run the command; its exit code, and all that it said as `stderr`."
    LOG['path'].write_text('')
    code, _ = LOG['nursery'].life(MODULE, [*ARGS, '--cache_dir', folder, *more], largest=largest)
    return subprocess.CompletedProcess(ARGS, code, stderr=LOG['path'].read_text())


def one_line(done, *says):
    "The command failed with one line that says these things."
    assert done.returncode == 1, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith('error: ') and 'Traceback' not in done.stderr
    for words in says:
        assert words in line, line
    return line


@pytest.fixture(scope='module')
def tuned(tmp_path_factory, nursery):
    folder = tmp_path_factory.mktemp('tuned')
    assert tune(folder).returncode == 0
    return folder


@pytest.fixture
def copy(tuned, tmp_path):
    return Path(shutil.copytree(tuned, tmp_path / 'copy'))


def contents(folder):
    return {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.suffix in ('.pt', '.json')}


@pytest.fixture
def small_disk(tmp_path):
    "A file system of two megabytes, and a function that changes its options."
    if os.getuid() != 0:
        pytest.skip('mounting is done as root')
    folder = tmp_path / 'disk'
    folder.mkdir()
    if subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', folder], stderr=subprocess.DEVNULL
    ).returncode:
        pytest.skip('no mount here')
    yield (
        folder,
        lambda options: subprocess.run(['mount', '-o', f'remount,{options}', folder], check=True),
    )
    subprocess.run(['umount', '-l', folder], check=True)


def test_a_full_disk(tuned, small_disk):
    """Nearly full.

    The studies do not fit. Then there is room, and the same command ends as it would have.
    """
    folder, remount = small_disk
    filler = folder / 'filler'
    filler.write_bytes(b'0' * 1_700_000)
    line = one_line(tune(folder), 'full')
    assert 'storage' in line or 'could not be written' in line
    assert_whole_but(folder, filler)
    remount('size=8m')
    done = tune(folder)
    assert done.returncode == 0, done.stderr
    assert (folder / f'{NAME}_expert1_best.pt').read_bytes() == (
        tuned / f'{NAME}_expert1_best.pt'
    ).read_bytes()


def assert_whole_but(folder, other):
    other.unlink()
    assert_whole(folder)
    finished_trials(folder)


@pytest.mark.parametrize('size', [0, 4_000, 60_000, 120_000])
def test_files_may_not_grow(tuned, tmp_path, size):
    "A limit on the size of files, from none at all to one that only the studies reach."
    line = one_line(tune(tmp_path, largest=size), str(tmp_path))
    assert 'disk' in line or 'space' in line or 'large' in line, line
    finished_trials(tmp_path)
    assert_whole(tmp_path)
    assert tune(tmp_path).returncode == 0
    assert (tmp_path / f'{NAME}_expert1_best.pt').read_bytes() == (
        tuned / f'{NAME}_expert1_best.pt'
    ).read_bytes()


def test_a_read_only_disk(small_disk):
    folder, remount = small_disk
    remount('ro')
    one_line(tune(folder), str(folder), 'cache_dir')
    assert not list(folder.iterdir())
    remount('rw')
    assert tune(folder).returncode == 0
    before = contents(folder)
    remount('ro')
    one_line(tune(folder, '--n_trials', '14'), str(folder))
    assert contents(folder) == before
    assert load_expert(folder, NAME, 'expert1')  # reading goes on


def test_a_folder_of_an_older_version(copy):
    path = copy / f'{NAME}_settings.json'
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {'format_version': 0}))
    before = contents(copy)
    one_line(tune(copy), 'older', 'cache_dir')
    path.unlink()
    one_line(tune(copy), path.name, 'overwrite')
    path.write_text(json.dumps(record | {'format_version': 99}))
    one_line(tune(copy), 'newer')
    path.write_text(before[path.name].decode())
    assert contents(copy) == before


class Program:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, 'w'))


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize('harm', ['cut', 'pickle', 'torch pickle', 'json cut', 'json rubbish'])
def test_damaged_and_hostile_files(tuned, copy, harm, tmp_path):
    """Refused by name when read, nothing in them is executed.

    The tuner writes them again from the study, the same to the bit.
    """
    target = copy / (
        f'{NAME}_expert1_tuning_results.json' if 'json' in harm else f'{NAME}_expert1_best.pt'
    )
    trap = tmp_path / 'executed'
    if 'cut' in harm:
        half(target)
    elif harm == 'pickle':
        target.write_bytes(pickle.dumps(Program(trap)))
    elif harm == 'torch pickle':
        torch.save({'state_dict': Program(trap)}, target)
    else:
        target.write_bytes(b'\xff{"n_trials": NaN')
    if 'json' not in harm:
        with pytest.raises(ArtifactError, match=target.name):
            load_checkpoint(target)
    with pytest.raises(ArtifactError, match=target.name):
        load_expert(copy, NAME, 'expert1')
    assert tune(copy).returncode == 0
    assert contents(copy) == contents(tuned)
    assert not trap.exists()
    if 'pickle' in harm:  # the trap is one: whoever trusts the file springs it
        if harm == 'pickle':
            pickle.loads(pickle.dumps(Program(trap)))
        else:
            torch.save({'state_dict': Program(trap)}, tmp_path / 'bad.pt')
            torch.load(tmp_path / 'bad.pt', weights_only=False)
        assert trap.exists()


def test_a_storage_that_vanished(copy, tuned):
    "The result file is enough for what it holds; more trials need the storage."
    for path in copy.glob('*_studies.db*'):
        path.unlink()
    before = contents(copy)
    done = tune(copy)
    assert done.returncode == 0 and 'cache' in done.stderr
    one_line(tune(copy, '--n_trials', '13'), '12 trials', 'has 0', 'overwrite')
    assert contents(copy) == before
    assert tune(copy, '--n_trials', '13', '--overwrite').returncode == 0


def test_a_storage_that_is_no_database(copy):
    path = copy / f'{NAME}_studies.db'
    for side in copy.glob('*_studies.db-*'):
        side.unlink()
    path.write_bytes(b'rubbish' * 1000)
    before = contents(copy)
    one_line(tune(copy), path.name, 'not a database')
    assert contents(copy) == before and path.read_bytes() == b'rubbish' * 1000


def test_two_at_once_in_one_folder(tuned, tmp_path):
    "The same command twice at the same moment: the trials are shared, the files are those of one."
    both = [
        subprocess.Popen(
            [sys.executable, *COMMAND, '--cache_dir', str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    errors = [p.communicate(timeout=300)[1] for p in both]
    assert [p.returncode for p in both] == [0, 0], errors
    assert_whole(tmp_path)
    assert list(finished_trials(tmp_path).values()) == [12]
    result = json.loads((tmp_path / f'{NAME}_expert1_tuning_results.json').read_text())
    assert (
        result['n_trials'] == 12
        and load_expert(tmp_path, NAME, 'expert1')[1]['trial'] == result['best_trial']
    )
    expected = json.loads((tuned / f'{NAME}_expert1_tuning_results.json').read_text())
    assert result['trials'][0]['params'] == expected['trials'][0]['params']  # the default, once


def test_control_c_ends_within_seconds_and_says_how_to_go_on(tuned, tmp_path):
    command = [sys.executable, *COMMAND, '--cache_dir', str(tmp_path), '--n_trials', '100000']
    listens = lambda: signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # a shell's background jobs, and what they start, ignore it
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=listens
    ) as process:
        while (
            not (tmp_path / f'{NAME}_studies.db').exists()
            or sum(finished_trials(tmp_path).values()) < 10
        ):
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        start, err = time.perf_counter(), process.stderr.read()
        assert process.wait(30) == 130 and time.perf_counter() - start < 10
    assert 'The same command continues' in err and 'Traceback' not in err
    done = sum(finished_trials(tmp_path).values())
    tuner = ExpertTuner(NAME, cache_dir=tmp_path, epochs=60)
    assert not [
        t for t in tuner.study('expert1').get_trials() if t.state.name == 'RUNNING'
    ]  # nobody has to wait for them
    result = tuner.tune_expert('expert1', n_trials=12)
    assert result['n_trials'] == max(done, 12)
    expected = json.loads((tuned / f'{NAME}_expert1_tuning_results.json').read_text())['trials'][
        :10
    ]
    assert [t['score'] for t in result['trials'][:10]] == [t['score'] for t in expected]
