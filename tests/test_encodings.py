"""Terminals and logs that lack characters: every command goes on, with the nearest ones it has."""

import io
import logging
import os
import subprocess
import sys
import warnings

import pytest
from conftest import ROOT

from moe_expert import cli, run_expert_tuning, run_moe, run_notebook
from moe_expert.data.shown import any_encoding, nearest
from moe_expert.parameters import COMMANDS

ENCODINGS = ['cp1252', 'iso-8859-1', 'ascii']
QUICK = '--n_trials 2 --epochs 40 --no-fine_tune'.split()


@pytest.fixture
def terminal(monkeypatch):
    "Call a command with a terminal of an encoding; its exit code, output, and error stream."

    def call(main, *argv, encoding, newlines='\n'):
        streams = [io.TextIOWrapper(io.BytesIO(), encoding, newline=newlines) for _ in range(2)]
        monkeypatch.setattr(sys, 'stdout', streams[0])
        monkeypatch.setattr(sys, 'stderr', streams[1])
        try:
            code = main(list(map(str, argv)))
        except SystemExit as end:
            code = end.code
        assert [s.errors for s in streams] == ['strict', 'strict']  # as they were
        said = []
        for stream in streams:
            stream.flush()
            said.append(stream.buffer.getvalue().decode(encoding))
        monkeypatch.undo()
        return code, *said

    return call


@pytest.fixture(scope='module')
def table(tmp_path_factory):
    "A table whose names no other encoding has."
    path = tmp_path_factory.mktemp('Daten – 数据') / 'Ærø − 人.csv'
    rows = [f'{i % 7},{"αβ" if i % 3 else "naïve ≤"},{i % 5 / 5},{i % 2}' for i in range(60)]
    path.write_text('\n'.join(['größe €,グループ,π,réponse', *rows]) + '\n', encoding='utf-8')
    return path


@pytest.mark.parametrize('encoding', ENCODINGS)
def test_every_help_and_every_complaint(terminal, encoding):
    for words in ((), ('--help',), ('--version',), ('tüne − 人',)):
        code, out, err = terminal(cli.main, *words, encoding=encoding)
        assert (out or err) and code in (0, 2)
    for name in COMMANDS:
        code, out, err = terminal(cli.main, name, '--help', encoding=encoding)
        assert code == 0 and out.startswith('usage: '), err
        code, out, err = terminal(cli.main, name, '--größe', '−人', encoding=encoding)
        assert code == 2 and err.count('\n') == 1
    for main in (run_expert_tuning.main, run_moe.main):
        assert terminal(main, '--help', encoding=encoding)[0] == 0
        assert terminal(main, '--dataset', '人', encoding=encoding)[0] == 2
    code, out, err = terminal(run_notebook.main, '人.ipynb', 'o.ipynb', encoding=encoding)
    assert code == 1 and err.startswith('error: unknown notebook') and err.count('\n') == 1


@pytest.mark.parametrize('encoding', ['cp1252', 'ascii'])
def test_tables_cards_and_drafts(terminal, table, tmp_path, encoding):
    code, out, err = terminal(cli.main, 'datasets', encoding=encoding)
    assert code == 0 and 'compas' in out, err
    code, out, err = terminal(cli.main, 'datasets', 'synthetic-300', '-v', encoding=encoding)
    assert code == 0 and 'people' in out, err
    card = tmp_path / 'Karte – 人.yaml'
    words = ('card', table, '--label', 'réponse', '--sensitive', 'グループ', '--path', card)
    code, out, err = terminal(cli.main, *words, encoding=encoding)
    assert code == 0 and 'Draft: ' in out, err
    assert 'グループ' in card.read_text(encoding='utf-8')
    words = ('audit', table, '--label', 'réponse', '--prediction', 'π', '--groups', 'グループ')
    code, out, err = terminal(cli.main, *words, encoding=encoding)
    assert code == 0 and ('naïve' if encoding != 'ascii' else 'naive') in out, err
    code, out, err = terminal(cli.main, 'datasets', table.with_name('人.yaml'), encoding=encoding)
    assert code == 2 and 'does not exist' in err and err.count('\n') == 1


@pytest.mark.slow
def test_training_progress_logs_and_checks(terminal, tmp_path):
    place = tmp_path / 'Ordner – 人'
    where = ('--dataset', 'synthetic-200', '--cache_dir', place)
    for command in (('train', '-v'), ('train', '-q'), ('tune', '-v')):
        quick = QUICK if command[0] == 'train' else QUICK[:-1]
        code, out, err = terminal(cli.main, *command, *quick, *where, encoding='cp1252')
        assert code == 0 and 'Files in ' in out and 'Ordner – ?' in out, err
        assert ('INFO' in err) == ('-v' in command) or 'cache' in err
    code, out, err = terminal(cli.main, 'verify', place, encoding='iso-8859-1')
    assert code == 0 and 'verified' in out, out + err
    for extra in (['--device', '人'], ['--drop', 'Größe − 人']):
        code, out, err = terminal(cli.main, 'train', *where, *extra, encoding='cp1252')
        assert code == 1 and err.startswith('error: '), err


def test_warnings_and_the_log(terminal):
    def work(argv):
        def inner(given):
            warnings.warn('− 人', stacklevel=1)
            logging.getLogger('moe_expert').warning('≤ é %s', '人')
            print('Δ', file=sys.stdout)
            return 0

        return run_expert_tuning.run_command('tune', inner, argv)

    code, out, err = terminal(work, encoding='iso-8859-1')
    assert (code, out, err) == (0, '?\n', 'warning: - ?\n<= é ?\n')


def run(*command, **variables):
    clean = {k: v for k, v in os.environ.items() if k not in ('LANG', 'PYTHONUTF8')}
    return subprocess.run(
        [sys.executable, '-m', *command],
        cwd=ROOT,
        env=clean | {'PYTHONUTF8': '0'} | variables,
        capture_output=True,
    )


@pytest.mark.parametrize(
    'variables',
    [
        {'PYTHONIOENCODING': 'cp1252'},
        {'PYTHONIOENCODING': 'iso-8859-1:strict'},
        {'LC_ALL': 'C', 'PYTHONCOERCECLOCALE': '0'},
    ],
    ids=lambda v: ' '.join(f'{k}={x}' for k, x in v.items()),
)
def test_a_process_of_its_own(variables):
    done = run('moe_expert', 'train', '--help', **variables)
    assert done.returncode == 0 and not done.stderr
    assert b'price of' in done.stdout or b'usage' in done.stdout


@pytest.mark.slow
def test_everything_in_one_go_with_reports(tmp_path, encoding='cp1252'):
    options = ['synthetic-200', '--n_trials', '2', '--epochs', '40', '--cache_dir', str(tmp_path)]
    done = run('moe_expert', 'run', *options, PYTHONIOENCODING=encoding, LC_ALL='C')
    said = done.stderr.decode(encoding)
    assert done.returncode == 0, said
    assert 'Error' not in said and 'susceptible' not in said
    assert 'All reports: ' in done.stdout.decode(encoding)
    out = str(tmp_path / 'out.ipynb')
    given = ['-r', 'dataset', 'synthetic-200', '-p', 'n_trials', '2', '-p', 'epochs', '40']
    words = ['tune.ipynb', out, *given, '-r', 'cache_dir', str(tmp_path), '--progress-bar']
    done = run('moe_expert.run_notebook', *words, PYTHONIOENCODING=encoding, LC_ALL='C')
    assert done.returncode == 0, done.stderr.decode(encoding)


def test_nearest_is_ascii_for_all_that_the_package_says():
    missing = set()
    for path in ROOT.glob('moe_expert/**/*.py'):
        missing |= {c for c in path.read_text('utf-8') if ord(c) > 127}
    assert all(nearest(c).isascii() for c in missing)
    assert [nearest(c) for c in '−–…⚠≤≥→×'] == ['-', '-', '...', '!', '<=', '>=', '->', 'x']


def test_other_streams_are_left_alone(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, 'stdout', stream)
    with any_encoding():
        print('−')
    assert stream.getvalue() == '−\n'
