"""Every chapter runs from top to bottom, in this process.

A kernel of its own for each would spend most of the time on starting and on importing PyTorch.
`.ci/chapters.py --check` does that for all of them, and compares the outputs (`.ci/run`, after
`make test`).
"""

import os
import sys

import pytest
from conftest import ROOT
from execnb.nbio import read_nb
from execnb.shell import CaptureShell

ELSEWHERE = {  # .ci/chapters.py --check runs these
    '69_pages.ipynb': 'it listens to its own kernel',
    '16_audit.ipynb': 'it takes more than ten seconds',
    '44_studies.ipynb': 'it takes more than ten seconds',
    '51_gate_training.ipynb': 'it takes more than ten seconds',
    '59_reading.ipynb': 'it takes more than ten seconds',
    '86_study_tables.ipynb': 'it takes more than ten seconds',
    '39_training.ipynb': 'it takes more than ten seconds',
    '77_estimator.ipynb': 'it takes more than ten seconds',
    '64_search.ipynb': 'it takes more than ten seconds',
    '65_winners.ipynb': 'it takes more than ten seconds',
    '67_mixture_report.ipynb': 'it takes more than ten seconds',
    '75_cli.ipynb': 'it takes more than ten seconds',
    '83_study_methods.ipynb': 'it takes more than ten seconds',
    '84_study_runs.ipynb': 'it takes more than ten seconds',
    'tutorial_own_data.ipynb': 'it takes more than ten seconds',
}
CHAPTERS = sorted([*ROOT.glob('nbs/[0-9]*.ipynb'), *ROOT.glob('nbs/tutorial*.ipynb')])


@pytest.mark.parametrize('path', CHAPTERS, ids=lambda p: p.name)
def test_chapter_runs(path, monkeypatch):
    if path.name in ELSEWHERE:
        pytest.skip(f'{ELSEWHERE[path.name]}: .ci/chapters.py --check runs it')
    monkeypatch.chdir(path.parent)
    monkeypatch.setattr(sys, 'path', [str(ROOT), *sys.path])
    environment = dict(os.environ)
    shell = CaptureShell(path.parent)
    try:
        for number, cell in enumerate(read_nb(path).cells):
            if cell.cell_type == 'code':
                shell.run(cell.source)
                assert shell.exc is None, f'cell {number} of {path.name}: {shell.exc!r}'
    finally:
        os.environ.clear()
        os.environ.update(environment)
