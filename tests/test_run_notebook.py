"What `make tune` and `make moe` run: papermill with an end, and an error of one line."

import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from conftest import ROOT

from moe_expert import parameters, run_notebook
from moe_expert.errors import ReportError
from moe_expert.report import run as report_run

SMALL = ['-r', 'dataset', 'synthetic-200', '-p', 'n_trials', '2', '-p', 'epochs', '40']


def run(*words, cwd, **options):
    command = [sys.executable, '-m', 'moe_expert.run_notebook', *map(str, words)]
    env = os.environ | {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, **options)


@pytest.mark.parametrize('door', parameters.NOTEBOOKS)
def test_papermills_own_names_are_no_parameters(door):
    "`papermill --inject-paths` adds them."
    paths = 'PAPERMILL_INPUT_PATH = "in.ipynb"\nPAPERMILL_OUTPUT_PATH = "out.ipynb"\n'
    namespace = dict(PAPERMILL_INPUT_PATH='in.ipynb', In=['', f'# Parameters\n{paths}'])
    assert parameters.collect(door, namespace) == parameters.check(door)
    namespace['In'].append(f'# Parameters\nPAPERMILL_PATH = 1\n{paths}')
    with pytest.raises(parameters.ParameterError, match='PAPERMILL_PATH'):
        parameters.collect(door, namespace)


@pytest.mark.parametrize(
    'words, says',
    [
        (['tune.ipynb', 'no/such/folder/out.ipynb'], 'the folder of no/such/folder/out.ipynb'),
        (['tune.ipynb', '-'], 'needs the name of a file'),
        (['tune.ipynb'], 'needs the name of a file'),
        (['tune.ipynb', 's3://bucket/out.ipynb'], 'needs the name of a file'),
        (['tune.ipynb', 'out.html'], 'would be the page'),
        (['tune.ipynb', '.'], '. is a folder'),
        (
            ['tines.ipynb', 'out.ipynb'],
            "unknown notebook 'tines.ipynb'. Did you mean 'tune.ipynb'?",
        ),
    ],
)
def test_places_that_cannot_be(words, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_notebook.main(words) == 1
    out, err = capsys.readouterr()
    assert out == '' and err.startswith('error: ') and says in err and err.count('\n') == 1
    assert list(tmp_path.iterdir()) == []


def test_options_are_papermills(capsys):
    assert run_notebook.main(['--help']) == 0
    assert '--inject-paths' in capsys.readouterr().out
    assert run_notebook.main(['tune.ipynb', 'out.ipynb', '--colour']) == 2
    assert 'No such option' in capsys.readouterr().err


def test_a_kernel_that_dies_is_one_error(tmp_path, monkeypatch):
    "As when memory runs out; the folder gets no half notebook."
    dying = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell('dataset = 1', metadata=dict(tags=['parameters'])),
            nbformat.v4.new_code_cell('import os, signal; os.kill(os.getpid(), signal.SIGKILL)'),
        ],
        metadata=dict(kernelspec=dict(name='python3', display_name='p', language='python')),
    )
    folder = tmp_path / 'a {brace} $x'
    folder.mkdir()
    nbformat.write(dying, folder / 'tune.ipynb')
    monkeypatch.setattr(report_run, 'notebook_path', lambda name: folder / name)
    given = parameters.check('tune.ipynb', dict(dataset='bail', cache_dir=str(folder / 'c')))
    with pytest.raises(ReportError, match='the kernel of the notebook died'):
        report_run.execute(given)
    assert [p.name for p in folder.iterdir()] == ['tune.ipynb']


@pytest.mark.slow
def test_the_end_names_edition_winners_notebook_and_page(tmp_path):
    (tmp_path / '{braces} "and" $x').mkdir()
    out = tmp_path / '{braces} "and" $x' / 'o`u`t.ipynb'
    place = ['-r', 'cache_dir', tmp_path / 'c', '--inject-paths']
    done = run('nbs/tune.ipynb', out, *SMALL, *place, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ''  # no kernel's warning, no bar in a pipe
    lines = done.stdout.splitlines()
    assert lines[0].startswith('synthetic-200 (synthetic edition): scores on the validation nodes')
    assert [line.split()[0] for line in lines[2:6]] == ['expert', 'expert1', 'expert2', 'expert3']
    page = out.with_suffix('.html')
    assert lines[-2:] == [f'Notebook: {out}', f'Page: {page}']
    assert '<table' in page.read_text('utf-8') and nbformat.read(out, 4).cells
    done = run('moe.ipynb', 'moe.ipynb', *SMALL, *place, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == '', done.stderr
    assert (
        'scores on the 50 test nodes' in done.stdout and 'constant (below the floor)' in done.stdout
    )
    assert done.stdout.endswith('Notebook: moe.ipynb\nPage: moe.html\n')
    assert (tmp_path / 'moe.html').stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize(
    'words, says',
    [
        (['-r', 'dataset', 'nowhere/card.yaml'], 'nowhere/card.yaml does not exist'),
        (['-r', 'dataset', 'german', '-r', 'data_dir', '/nowhere'], 'german'),
        ([*SMALL, '-p', 'n_trial', '3'], "Did you mean 'n_trials'?"),
    ],
)
def test_a_failure_is_one_line_and_the_notebook_explains(words, says, tmp_path):
    offline = {'https_proxy': 'http://127.0.0.1:9', 'HOME': str(tmp_path)}
    env = os.environ | {'PYTHONPATH': str(ROOT)} | offline | {'XDG_CACHE_HOME': str(tmp_path)}
    env.pop('MOE_EXPERT_DATA', None)
    command = [sys.executable, '-m', 'moe_expert.run_notebook', 'tune.ipynb', 'out.ipynb', *words]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ''
    assert done.stderr.count('\n') == 1 and done.stderr.startswith('error: '), done.stderr
    assert says in done.stderr and '(the notebook up to there: out.ipynb)' in done.stderr
    assert not (tmp_path / 'out.html').exists()
    cells = nbformat.read(tmp_path / 'out.ipynb', 4).cells
    assert any(o.output_type == 'error' for c in cells for o in c.get('outputs', ()))


@pytest.mark.slow
@pytest.mark.parametrize('number, code', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_an_interruption(number, code, tmp_path):
    words = ['-r', 'dataset', 'synthetic-200', '-p', 'n_trials', '100000']
    command = [sys.executable, '-m', 'moe_expert.run_notebook', 'tune.ipynb', 'out.ipynb', *words]
    listens = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listens,
    )
    until = time.monotonic() + 120
    while not list(tmp_path.glob('weights/*/*_studies.db')) and time.monotonic() < until:
        time.sleep(0.2)
    process.send_signal(number)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == code, err
    assert 'The same command continues' in err and 'Traceback' not in err, err
