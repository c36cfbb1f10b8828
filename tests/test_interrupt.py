"""An interrupted run keeps what is finished, says how to go on, and ends with the same bits.

The notebooks run in a real kernel, which gets the signal that the stop button sends.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from jupyter_client.manager import KernelManager

from moe_expert.trainer import MoETrainer
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
            assert not [form for form in content['data'] if 'widget' in form]
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
    parameters |= dict(pareto_trials=2)
    *before, work = cells_until(repo_root, 'tune.ipynb', 'NotebookProgress', **parameters)
    with kernel(repo_root, tmp_path) as (manager, client):
        for code in before:
            assert run_cell(client, code)[1] is None
        sent, watch = interrupted_at(manager, ['10 of 30 trials', 'in training'])
        texts, error = run_cell(client, work, watch)
        assert sent and error['ename'] == 'Interrupted'
        assert error['traceback'] == [
            'Interrupted. Finished trials are kept: run this cell again to go on, then those '
            'below it.'
        ]
        assert texts[-1].startswith('Interrupted after') and '10 of 30 trials' in texts[-1]
        tuner = ExpertTuner(NAME, cache_dir=tmp_path / 'weights' / 'moe_experts', epochs=600)
        states = [t.state.name for t in tuner.study('expert2').get_trials()]
        assert states.count('COMPLETE') == 10 and 'RUNNING' not in states
        more, error = run_cell(client, work)
        assert error is None and more[-1].startswith('Done in'), error
        trade_off = cells_until(repo_root, 'tune.ipynb', 'search_pareto(')[-1]
        shown, error = run_cell(client, trade_off)
        assert error is None and 'pareto (trade-off):' in '\n'.join(shown)
        assert [t for t in shown if t.startswith('Done in') and 'pareto: 2 of 2 trials.' in t]
    (bars,) = percents(texts).values()
    assert bars == sorted(bars) and bars[-1] >= 33  # ten of thirty
    (bars,) = percents(more).values()
    assert bars == sorted(bars) and bars[0] >= 33  # it began where it was
    alone = ExpertTuner(NAME, cache_dir=tmp_path / 'alone', epochs=600, device='cpu')
    expected = alone.tune_expert('expert2', 30)
    result = json.loads(ExpertFiles(tuner.files.cache_dir, NAME).results('expert2').read_text())
    assert result['checkpoint_sha256'] == expected['checkpoint_sha256']
    assert [t['score'] for t in result['trials']] == [t['score'] for t in expected['trials']]


@pytest.mark.slow
def test_the_stop_button_in_the_notebook_of_the_mixture(tmp_path, repo_root):
    cache = tmp_path / 'weights' / 'moe_experts'
    for folder in (cache, tmp_path / 'alone'):
        ExpertTuner(NAME, cache_dir=folder, epochs=100, device='cpu').tune_all_experts(1)
    parameters = dict(dataset=NAME, n_trials=20, epochs=100, device='cpu')
    *before, work = cells_until(repo_root, 'moe.ipynb', 'NotebookProgress', **parameters)
    with kernel(repo_root, tmp_path) as (manager, client):
        for code in before:
            assert run_cell(client, code)[1] is None
        told = []
        for words in (
            ['gate: 15 of 20 trials', 'in training'],
            ['fine-tuning: 0 of 1 ways', 'in training'],
        ):
            sent, watch = interrupted_at(manager, words)
            texts, error = run_cell(client, work, watch)
            assert sent and error['ename'] == 'Interrupted' and len(error['traceback']) == 1
            told.append(texts)
        last, error = run_cell(client, work)
        assert error is None and last[-1].startswith('Done in'), error
    for texts in (*told, last):
        for bars in percents(texts).values():
            assert bars == sorted(bars)
    (bars,) = percents(told[0]).values()
    assert bars[0] == 0 and bars[-1] >= 50
    stages = percents(told[1])
    assert stages['gate (mixture)'][0] >= 50 and stages['fine-tuning (mixture)'][0] == 0
    assert 'gate: 20 trials, all from the cache' in last[-1]
    alone = MoETrainer(NAME, cache_dir=tmp_path / 'alone', device='cpu')
    expected = alone.run(20)
    files = ExpertFiles(cache, NAME)
    gate, tuned = (json.loads(p.read_text()) for p in (files.gate_results, files.finetuned_results))
    assert gate['checkpoint_sha256'] == expected['gate']['checkpoint_sha256']
    for name in ('score_after', 'checkpoint_sha256', 'best_way', 'ways'):
        assert tuned[name] == expected['fine_tuning'][name], name


@pytest.mark.slow
@pytest.mark.skipif(os.name == 'nt', reason='POSIX signals')
@pytest.mark.parametrize('command', ['train', 'report'])
def test_an_interrupted_command_ends_with_one_line(tmp_path, repo_root, command):
    ExpertTuner(NAME, cache_dir=tmp_path, epochs=100, device='cpu').tune_all_experts(1)
    argv = ['--dataset', NAME, '--cache_dir', str(tmp_path)]
    argv += ['--n_trials', '100000'] if command == 'train' else ['--expert', 'expert1']
    listens = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background job ignores it
    with subprocess.Popen(
        [sys.executable, '-m', 'moe_expert.cli', command, *argv],
        cwd=repo_root,
        env=os.environ | {'OMP_NUM_THREADS': '1'},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listens,
        start_new_session=True,
    ) as process:
        seen = ''
        while '|' not in seen:  # a bar: of trials, or of cells
            seen += process.stderr.read(1)
            assert process.poll() is None, seen
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        start = time.perf_counter()
        err = process.stderr.read()
        assert process.wait(30) == 130, err
        assert time.perf_counter() - start < 20
    last = err.replace('\r', '\n').strip().splitlines()[-1]
    again = 'The same command continues from there.' if command == 'train' else 'does it again.'
    assert last.startswith('interrupted; ') and last.endswith(again), err
    assert 'Traceback' not in err and 'Error' not in err, err
    assert not list(tmp_path.glob('*.failed.ipynb'))
