"""An interrupted run keeps what is finished, says how to go on, and ends with the same bits.

The notebooks run in a real kernel, which gets the signal that the stop button sends.
"""

import json
import os
import time
from contextlib import contextmanager

import pytest
from jupyter_client.manager import KernelManager

from moe_expert.tune_experts import ExpertTuner
from moe_expert.tuning.folder import ExpertFiles

NAME = 'synthetic-300'
LIMIT = 120  # seconds that a cell may take


@contextmanager
def kernel(repo_root, folder):
    "A kernel that finds this package: (manager, client)."
    manager = KernelManager(kernel_name='python3')
    env = os.environ | {'PYTHONPATH': str(repo_root), 'OMP_NUM_THREADS': '1'}
    manager.start_kernel(cwd=str(folder), env=env)
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def run_cell(client, code, watch=lambda text: None):
    "Run a cell: (the texts that its outputs showed, its error or None)."
    request, texts, error = client.execute(code), [], None
    until = time.monotonic() + LIMIT
    while time.monotonic() < until:
        message = client.get_iopub_msg(timeout=LIMIT)
        content, kind = message['content'], message['msg_type']
        if message['parent_header'].get('msg_id') != request:
            continue
        if kind in ('display_data', 'update_display_data'):
            assert set(content['data']) <= {'text/plain', 'text/html'}, 'a widget, or a picture'
            texts.append(content['data']['text/plain'])
            watch(texts[-1])
        if kind == 'error':
            error = content
        if kind == 'status' and content['execution_state'] == 'idle':
            return texts, error
    pytest.fail(f'the cell took more than {LIMIT} s; last: {texts[-1:]}')


def cells_until(repo_root, name, work, **parameters):
    "The code cells of a notebook up to the one that works, with other parameters."
    found = []
    for cell in json.loads((repo_root / 'nbs' / name).read_text())['cells']:
        if cell['cell_type'] != 'code':
            continue
        code = ''.join(cell['source'])
        found.append(code)
        if 'parameters' in cell['metadata'].get('tags', ()):
            found.append('\n'.join(f'{k} = {v!r}' for k, v in parameters.items()))
        if work in code:
            return found
    pytest.fail(f'{name} has no cell with {work!r}')


def percents(texts):
    "The numbers before '%' in the bars, by stage."
    bars = {}
    for text in texts:
        for line in text.splitlines():
            if '%|' in line:
                stage, rest = line.split(':', 1)
                bars.setdefault(stage, []).append(int(rest.split('%')[0]))
    return bars


def interrupted_at(manager, words):
    "Interrupts the kernel when its output has these words for the first time."
    sent = []

    def watch(text):
        if not sent and all(word in text for word in words):
            sent.append(text)
            manager.interrupt_kernel()

    return sent, watch


@pytest.mark.slow
def test_the_stop_button_in_the_tuning_notebook(tmp_path, repo_root):
    parameters = dict(dataset=NAME, expert='expert2', n_trials=30, epochs=600, device='cpu')
    *before, work = cells_until(repo_root, 'tune.ipynb', 'NotebookProgress', **parameters)
    with kernel(repo_root, tmp_path) as (manager, client):
        for code in before:
            assert run_cell(client, code)[1] is None
        sent, watch = interrupted_at(manager, ['15 of 30 trials', 'in training'])
        texts, error = run_cell(client, work, watch)
        assert sent and error['ename'] == 'Interrupted'
        assert error['traceback'] == [
            'Interrupted. Finished trials are kept: run this cell again to go on, then those '
            'below it.'
        ]
        assert texts[-1].startswith('Interrupted after') and '15 of 30 trials' in texts[-1]
        tuner = ExpertTuner(NAME, cache_dir=tmp_path / 'weights' / 'moe_experts', epochs=600)
        states = [t.state.name for t in tuner.study('expert2').get_trials()]
        assert states.count('COMPLETE') == 15 and 'RUNNING' not in states
        more, error = run_cell(client, work)
        assert error is None and more[-1].startswith('Done in'), error
    (bars,) = percents(texts).values()
    assert bars == sorted(bars) and bars[-1] >= 50
    (bars,) = percents(more).values()
    assert bars == sorted(bars) and bars[0] >= 50  # it began where it was
    alone = ExpertTuner(NAME, cache_dir=tmp_path / 'alone', epochs=600, device='cpu')
    expected = alone.tune_expert('expert2', 30)
    result = json.loads(ExpertFiles(tuner.files.cache_dir, NAME).results('expert2').read_text())
    assert result['checkpoint_sha256'] == expected['checkpoint_sha256']
    assert [t['score'] for t in result['trials']] == [t['score'] for t in expected['trials']]
