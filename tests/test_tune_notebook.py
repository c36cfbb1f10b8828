"tune.ipynb as people run it: papermill from the root, nbconvert from its folder, and from Python."

import os
import shutil
import subprocess
import sys

import nbformat
import papermill.engines as papermill_engines
import pytest
from conftest import ROOT

from moe_expert.errors import ArtifactError, ParameterError, ReportError
from moe_expert.report.run import run_report
from moe_expert.report.winners import SELECTED
from moe_expert.run_expert_tuning import main
from moe_expert.tune_experts import ExpertTuner

SMALL = dict(n_trials=2, epochs=100)


@pytest.fixture
def clone(tmp_path, repo_root):
    "A clone that is not installed, with the notebook and the package only."
    shutil.copytree(
        repo_root / 'moe_expert',
        tmp_path / 'clone' / 'moe_expert',
        ignore=shutil.ignore_patterns('__pycache__'),
    )
    (tmp_path / 'clone' / 'nbs').mkdir()
    shutil.copy(repo_root / 'nbs' / 'tune.ipynb', tmp_path / 'clone' / 'nbs')
    return tmp_path / 'clone'


def tool(*command, cwd):
    return subprocess.run(
        [sys.executable, '-m', *map(str, command)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )


def papermill(cwd, out, **parameters):
    given = [w for k, v in parameters.items() for w in ('-p', k, v)]
    return tool('papermill', 'nbs/tune.ipynb', out, *given, '--no-progress-bar', cwd=cwd)


def outputs(path):
    "Source → outputs of the code cells of a valid notebook."
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    return {c.source.strip(): c.outputs for c in notebook.cells if c.cell_type == 'code'}


def text_of(cells):
    shown = [o for outputs in cells.values() for o in outputs]
    kinds = ('text/html', 'text/markdown')
    return '\n'.join(
        o.get('text', '') + ''.join(o.get('data', {}).get(kind, '') for kind in kinds)
        for o in shown
    )


def test_papermill_in_an_uninstalled_clone(clone):
    done = papermill(clone, 'out.ipynb', dataset='bail', edition='offline', **SMALL)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = clone / 'weights' / 'moe_experts'
    out, copy = outputs(clone / 'out.ipynb'), outputs(folder / 'bail_experts_tuning_report.ipynb')
    assert out == copy  # complete, the last cell's own output included
    text = text_of(copy)
    assert (
        SELECTED in text
        and 'Offline edition' in text
        and 'bail_experts_tuning_report.ipynb' in text
    )
    assert sum('image/png' in o.get('data', {}) for shown in copy.values() for o in shown) == 9
    assert not any(
        o.output_type in ('stream', 'error') for shown in copy.values() for o in shown
    ), text
    assert (folder / 'bail_expert3_best.pt').exists() and (
        folder / 'bail_expert_tuning_summary.json'
    ).exists()
    assert any(source.startswith('# Parameters') for source in copy)
    wrong = papermill(clone, 'wrong.ipynb', dataset='bail', expert='expert4', n_trial=3)
    assert wrong.returncode == 1
    assert "expert must be 'all', 'expert1', 'expert2', 'expert3', not 'expert4'" in wrong.stderr
    assert "Did you mean 'n_trials'?" in wrong.stderr
    assert 'expert4' in str(outputs(clone / 'wrong.ipynb'))


@pytest.mark.slow
def test_nbconvert_in_the_folder_of_the_notebook(clone):
    notebook = clone / 'nbs' / 'tune.ipynb'
    text = notebook.read_text()
    for a, b in (
        ("dataset = 'bail'", "dataset = 'synthetic-200'"),
        ('n_trials = 30', 'n_trials = 2'),
        ('epochs = 2000', 'epochs = 100'),
        ("expert = 'all'", "expert = 'expert2'"),
    ):
        assert text.count(a) == 1
        text = text.replace(a, b)
    notebook.write_text(text)
    done = tool(
        'nbconvert',
        '--to',
        'notebook',
        '--execute',
        'tune.ipynb',
        '--output',
        'run.ipynb',
        cwd=notebook.parent,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = clone / 'weights' / 'moe_experts' / 'synthetic-200_expert2_tuning_report.ipynb'
    assert outputs(report) == outputs(notebook.parent / 'run.ipynb')
    assert not (notebook.parent / 'weights').exists()


@pytest.mark.slow
def test_full_bail(tmp_path, data_dir, monkeypatch):
    written, write = [], papermill_engines.write_ipynb
    count = lambda nb, path: (written.append(path), write(nb, path))[1]
    monkeypatch.setattr(papermill_engines, 'write_ipynb', count)
    monkeypatch.chdir(tmp_path)
    options = dict(cache_dir='cache', data_dir=str(data_dir))
    ExpertTuner('recidivism', edition='full', epochs=100, **options).tune_expert('expert2', 2)
    path = run_report('recidivism', 'expert2', **options)
    assert str(path) == os.path.join('cache', 'bail_expert2_tuning_report.ipynb')
    text = text_of(outputs(path))
    assert len(written) <= 3  # not again with every cell: the figures are half a megabyte
    assert (
        'TIME' in text
        and 'Possible leakage' in text
        and '18,876' in text
        and 'Offline edition' not in text
    )
    assert sorted(p.name for p in path.parent.glob('*.pt')) == ['bail_expert2_best.pt']


@pytest.mark.slow
def test_run_report_a_failure_and_the_script_from_the_cache(tmp_path, capsys):
    place = dict(cache_dir=tmp_path / 'cache')
    with pytest.raises(ArtifactError, match='holds nothing about synthetic-200: tune its experts'):
        run_report('synthetic-200', 'expert1', **place)
    assert not place['cache_dir'].exists()
    ExpertTuner('synthetic-200', epochs=100, **place).tune_expert('expert1', 2)
    first = run_report('synthetic-200', 'expert1', **place)
    before = first.read_bytes()
    with pytest.raises(ReportError, match="has no column 'nowhere'") as err:
        run_report('synthetic-200', 'expert1', groups=['nowhere'], **place)
    failed = tmp_path / 'cache' / 'synthetic-200_expert1_tuning_report.failed.ipynb'
    assert str(failed) in str(err.value) and first.read_bytes() == before
    assert any(o.output_type == 'error' for shown in outputs(failed).values() for o in shown)
    assert 'PYTHONPATH' not in os.environ or str(tmp_path) not in os.environ['PYTHONPATH']
    options = [
        '--dataset',
        'synthetic-200',
        '--expert',
        'expert1',
        '--n_trials',
        '2',
        '--epochs',
        '100',
        '--report',
    ]
    assert main([*options, '--cache_dir', str(tmp_path / 'cache')]) == 0
    assert f'Report: {first}' in capsys.readouterr().out
    page = first.with_suffix('.html').read_text()
    assert '<script' not in page and page.count('src="data:image/png') == 7 and 'only reads' in page
    assert 'No description has been provided' not in page and not failed.exists()
    papermill_ = ['papermill', 'nbs/tune.ipynb', tmp_path / 'out.ipynb', '--no-progress-bar']
    given = dict(dataset='synthetic-200', expert='expert1', n_trials=2, epochs=100, **place)
    words = [w for k, v in given.items() for w in ('-p', k, v)]
    assert tool(*papermill_, *words, cwd=ROOT).returncode == 0
    assert 'expert1: 2 trials, all from the cache' in text_of(outputs(first))
    other = tool(*papermill_, *words, '-p', 'seed', 1, cwd=ROOT)
    assert other.returncode == 1 and 'seed: 0 there, 1 asked for' in other.stderr
    assert 'STOPPED after' in text_of(outputs(papermill_[2]))


def test_wrong_parameters_stop_before_a_kernel_starts(tmp_path):
    with pytest.raises(ParameterError, match="Did you mean 'n_trials'"):
        run_report('bail', n_trial=3, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
