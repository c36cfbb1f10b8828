"The script by path, with -m, from another folder, wrong, interrupted and cached."

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import marked_clone, run_python

from moe_expert.run_expert_tuning import main

FEW = ['--dataset', 'synthetic-200', '--n_trials', '2', '--epochs', '60']


@pytest.fixture(scope='module')
def clone(tmp_path_factory):
    return marked_clone(tmp_path_factory.mktemp('clone'), 'tune_experts.py')


@pytest.mark.parametrize(
    'how', ['path', *(pytest.param(h, marks=pytest.mark.slow) for h in ('module', 'elsewhere'))]
)
def test_it_runs_uninstalled(clone, tmp_path, how):
    cwd = tmp_path if how == 'elsewhere' else clone
    script = dict(
        path=['moe_expert/run_expert_tuning.py'],
        module=['-m', 'moe_expert.run_expert_tuning'],
        elsewhere=[clone / 'moe_expert' / 'run_expert_tuning.py'],
    )[how]
    done = run_python(
        *script, *FEW, '--expert', 'expert1', '--cache_dir', f'weights/{how}', cwd=cwd
    )
    assert done.returncode == 0, done.stderr
    assert f'imported from {clone}' in done.stderr and 'expert1 (utility): 100%' in done.stderr
    assert 'max utility' in done.stdout and 'this run' in done.stdout and '%' not in done.stdout
    assert (cwd / 'weights' / how / 'synthetic-200_expert1_best.pt').exists()


def test_closing_table_and_cache(tmp_path, capsys):
    assert main([*FEW, '--cache_dir', str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[2:6]] == [
        'expert',
        'expert1',
        'expert2',
        'expert3',
    ]
    assert main([*FEW, '--cache_dir', str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert (
        'nothing was trained: all results came from the cache' in out
        and 'all from the cache' in err
    )
    assert (
        main(
            [
                *FEW[:2],
                '--n_trials',
                '3',
                '--epochs',
                '60',
                '--expert',
                'expert2',
                '--cache_dir',
                str(tmp_path),
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert 'this run' in out and 'of 3' in out and 'cache ' not in out
    assert main([*FEW, '--cache_dir', str(tmp_path), '--drop', 'c1,c2', 'b3']) == 1
    err = capsys.readouterr().err
    assert err.startswith('error: ') and err.count('\n') == 1 and '"c1", "c2", "b3"' in err
    assert (
        main(
            [
                *FEW,
                '--cache_dir',
                str(tmp_path),
                '--drop',
                'c1',
                '--overwrite',
                '--expert',
                'expert1',
            ]
        )
        == 0
    )


@pytest.mark.parametrize(
    'wrong, says',
    [
        (['--n_trials', '0'], 'at least 1'),
        (['--n_trials', 'ten'], "'ten' is not a whole number"),
        (['--seed', '-1'], 'from 0 to'),
        (['--expert', '4'], 'expert3'),
        (['--edition', 'offlin'], 'offline'),
        (['--dataset', 'bial'], "Did you mean 'bail'?"),
        (['--n_trial', '3'], "Did you mean '--n_trials'?"),
        (['--drop'], '--drop'),
        (['--cache_dir'], '--cache_dir'),
        (['--seed', str(2**32)], '4294967295'),
    ],
)
def test_wrong_arguments_exit_2_with_one_line(wrong, says, refused):
    refused(main, wrong, says)


def test_our_errors_exit_1_with_one_line(fails_in_one_line):
    fails_in_one_line(main, FEW)


def test_the_offline_edition_is_announced_in_one_line(tmp_path, capsys, monkeypatch):
    import moe_expert.datasets as datasets

    monkeypatch.setattr(datasets, 'find_files', lambda spec, data_dir: (None, None, []))
    assert (
        main(
            [
                '--dataset',
                'bail',
                '--n_trials',
                '1',
                '--epochs',
                '50',
                '--expert',
                'expert1',
                '--cache_dir',
                str(tmp_path),
            ]
        )
        == 0
    )
    out, err = capsys.readouterr()
    assert 'offline edition' in out
    assert [line for line in err.splitlines() if 'OFFLINE EDITION' in line][0].startswith(
        'warning: bail'
    )


@pytest.mark.skipif(os.name == 'nt', reason='POSIX signals')
def test_an_interrupt_ends_within_seconds_and_the_same_command_goes_on(tmp_path, repo_root):
    command = [
        sys.executable,
        '-m',
        'moe_expert.run_expert_tuning',
        '--dataset',
        'synthetic-2000',
        '--n_trials',
        '500',
        '--epochs',
        '20000',
        '--expert',
        'expert3',
        '--cache_dir',
        str(tmp_path),
    ]
    listens = lambda: signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # a shell's background jobs, and what they start, ignore it
    with subprocess.Popen(
        command, cwd=repo_root, stderr=subprocess.PIPE, text=True, preexec_fn=listens
    ) as process:
        while 'expert3' not in process.stderr.read(20):
            pass
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        start = time.perf_counter()
        err = process.stderr.read()
        assert process.wait(30) == 130
        assert time.perf_counter() - start < 10
    assert 'The same command continues' in err and 'Traceback' not in err
    assert (tmp_path / 'synthetic-2000_studies.db').exists()
