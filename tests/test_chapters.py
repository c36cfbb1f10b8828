"""Every chapter runs from top to bottom, in this process.

A kernel of its own for each would spend most of the time on starting and on importing PyTorch; so
does `.ci/chapters.py --check`, which also compares the outputs (`.ci/run`, after `make test`).
"""

import os
import sys

import pytest
from conftest import ROOT
from execnb.nbio import read_nb
from execnb.shell import CaptureShell

NEEDS_A_KERNEL = {'67_pages.ipynb'}  # it listens to its own kernel
CHAPTERS = sorted([*ROOT.glob('nbs/[0-9]*.ipynb'), *ROOT.glob('nbs/tutorial*.ipynb')])


@pytest.mark.parametrize('path', CHAPTERS, ids=lambda p: p.name)
def test_chapter_runs(path, monkeypatch):
    if path.name in NEEDS_A_KERNEL:
        pytest.skip('needs a kernel: .ci/chapters.py --check runs it')
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
