"The command hands over to the scripts and reports on several data sets."

import configparser
import subprocess
import sys
from importlib import import_module

import pytest

from moe_expert import cli, parameters
from moe_expert.data.catalogue import SHIPPED
from moe_expert.run_expert_tuning import readers


def test_the_console_script_is_the_main_function(repo_root):
    config = configparser.ConfigParser(delimiters=['='])
    config.read(repo_root / 'settings.ini')
    name, target = config['DEFAULT']['console_scripts'].split('=')
    module, function = target.split(':')
    assert name == 'moe-expert' and getattr(import_module(module), function) is cli.main
    assert (
        "entry_points={'console_scripts': cfg['console_scripts'].split()}"
        in (repo_root / 'setup.py').read_text()
    )


def test_as_a_module_in_a_process_of_its_own(repo_root):
    for module in ('moe_expert', 'moe_expert.cli'):
        done = subprocess.run(
            [sys.executable, '-m', module, 'datasets'],
            cwd=repo_root,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0 and done.stderr == ''
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        'name',
        'bail',
        'german',
        'math',
        'por',
        *SHIPPED,
        'synthetic',
    ]


def test_a_reader_that_goes_ends_a_command_quietly(repo_root):
    for words in ('datasets', '--help'):
        shell = f'{sys.executable} -m moe_expert {words} | true; exit ${{PIPESTATUS[0]}}'
        done = subprocess.run(['bash', '-c', shell], cwd=repo_root, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (141, '')


def test_another_broken_pipe_is_an_error():
    with pytest.raises(BrokenPipeError, match='a server'), readers():
        raise BrokenPipeError('the pipe to a server')


@pytest.mark.parametrize(
    'argv, code, said',
    [
        (['--help'], 0, 'commands:'),
        ([], 2, 'commands:'),
        (['tunes'], 2, "unknown command 'tunes'. Did you mean 'tune'?"),
        (['--version'], 0, 'moe-expert 0.'),
    ],
)
def test_exit_codes(argv, code, said, capsys):
    assert cli.main(argv) == code
    assert said in ''.join(capsys.readouterr())


@pytest.mark.parametrize(
    'argv, said',
    [
        (
            ['tune', '--n_trial', '3'],
            'moe-expert tune: error: unrecognized arguments: --n_trial 3. Did you mean',
        ),
        (
            ['verify', '--cache_dir', 'weights'],
            ': it is given without its name, verify VALUE',
        ),
        (
            ['report', '--expert', 'expert4'],
            "moe-expert report: error: argument --expert: invalid choice: 'expert4'",
        ),
        (
            ['report', '--pareto'],
            'moe-expert report: error: --pareto is an option of tune, not of report',
        ),
        (
            ['datasets', 'bial'],
            "moe-expert datasets: error: argument dataset: unknown data set 'bial'. Did",
        ),
        (['datasets', '--edition', 'x'], 'moe-expert datasets: error: argument --edition'),
    ],
)
def test_wrong_arguments_are_one_line(argv, said, capsys):
    with pytest.raises(SystemExit, match='2'):
        cli.main(argv)
    error = capsys.readouterr().err
    assert said in error and error.count('\n') == 1


def test_train_hands_over(capsys):
    with pytest.raises(SystemExit, match='2'):
        cli.main(['train', '--dataset', 'bial'])
    assert (
        "moe-expert train: error: argument --dataset: unknown data set 'bial'. Did you mean 'bail'?"
        in capsys.readouterr().err
    )


def test_tune_hands_over(tmp_path, capsys):
    few = [
        '--dataset',
        'synthetic-300',
        '--expert',
        'expert1',
        '--n_trials',
        '1',
        '--epochs',
        '100',
        '--cache_dir',
        str(tmp_path),
    ]
    assert cli.main(['tune', *few]) == 0
    assert (
        tmp_path / 'synthetic-300_expert1_best.pt'
    ).exists() and 'maximize' not in capsys.readouterr().err


def test_every_pair_is_reported_and_one_that_stops_does_not_stop_the_rest(
    tmp_path, monkeypatch, capsys
):
    from moe_expert.errors import MoEExpertError
    from moe_expert.report import run as report_run

    asked = []

    def run_report(dataset, expert, **given):
        asked.append((dataset, expert, given))
        if dataset == 'german':
            raise MoEExpertError('not\nhere')
        return tmp_path / f'{dataset}_{expert}.ipynb'

    monkeypatch.setattr(report_run, 'run_report', run_report)
    monkeypatch.setattr(
        report_run,
        'run_moe_report',
        lambda dataset, **given: run_report(dataset, 'mixture', **given),
    )
    options = [
        '--groups',
        'a,b',
        'c',
        '--cache_dir',
        str(tmp_path),
    ]
    assert (
        cli.main(
            [
                'report',
                '--dataset',
                'bail',
                'german',
                'math',
                '--expert',
                'all',
                'expert2',
                'mixture',
                *options,
            ]
        )
        == 1
    )
    assert [a[:2] for a in asked] == [
        (d, e) for d in ('bail', 'german', 'math') for e in ('all', 'expert2', 'mixture')
    ]
    assert all(a[2]['groups'] == ('a', 'b', 'c') for a in asked)
    out, err = capsys.readouterr()
    assert (
        'error: german, all: not here' in err
        and f'bail, all: {tmp_path}/bail_all.html' in out
        and (tmp_path / 'index.html').exists()
    )
    assert set(asked[0][2]) <= {*parameters.names('report'), 'progress_bar'}


def test_quiet_shows_no_progress_and_verbose_logs(tmp_path, capsys):
    few = (
        '--dataset synthetic-200 --expert expert1 --n_trials 1 --epochs 60 --cache_dir'.split()
        + [str(tmp_path)]
    )
    assert cli.main(['tune', *few, '--quiet']) == 0
    out, err = capsys.readouterr()
    assert '%' not in err and 'expert1' not in err and 'this run' in out
    assert cli.main(['tune', *few, '-q', '-v']) == 0
    assert 'INFO: expert1 of synthetic-200' in capsys.readouterr().err
    assert cli.main(['tune', *few]) == 0
    err = capsys.readouterr().err
    assert 'INFO' not in err and 'from the cache' in err
