"Reports that are killed while they are made or written: nothing is left beside the checkpoints."

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from moe_expert.data.files import sweep
from moe_expert.tune_experts import ExpertTuner

pytestmark = [pytest.mark.faults, pytest.mark.skipif(os.name == 'nt', reason='POSIX')]
NAME = 'synthetic-200'
REPORT = f'{NAME}_expert1_tuning_report'

# the command; its k-th write of a file that is named is stopped in the middle
COMMAND = """
import os, signal, sys
from moe_expert.data import files
cut, number, write = sys.argv[1], int(sys.argv[2]), files.write_bytes

def write_bytes(path, data):
    if not str(path).endswith(cut):
        return write(path, data)
    with files.atomic_write(path) as file:
        file.write(data[:len(data) // 2])
        file.flush()
        os.kill(os.getpid(), number)
        file.write(data)

from moe_expert.report import index, pages, run
index.write_bytes = pages.write_bytes = run.write_bytes = write_bytes
from moe_expert.cli import main
sys.exit(main(sys.argv[3:]))
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp('tuned') / 'c'
    ExpertTuner(NAME, epochs=40, cache_dir=place).tune_expert('expert1', 2)
    return place


def begun(folder, *command, temporary):
    words = ['report', '--dataset', NAME, '--expert', 'expert1', '--cache_dir', str(folder)]
    env = os.environ | {'PYTHONPATH': str(ROOT), 'TMPDIR': str(temporary), 'OMP_NUM_THREADS': '1'}
    env['JUPYTER_RUNTIME_DIR'] = str(temporary / 'runtime')
    (temporary / 'runtime').mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, *command, *words],
        cwd=ROOT,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background jobs, and what they start, ignore it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def names(folder):
    return {p.name for p in folder.iterdir()}


def unfinished(folder):
    return {n for n in names(folder) if n.endswith('.tmp')}


def kernels(temporary):
    "Processes of kernels that this report started."
    found = []
    for path in Path('/proc').glob('[0-9]*/cmdline'):
        try:
            found.append(path.read_text(errors='replace'))
        except OSError:  # it has ended
            continue
    return [words for words in found if str(temporary) in words and 'ipykernel' in words]


@pytest.mark.parametrize('cut', [f'{REPORT}.ipynb', f'{REPORT}.html', 'index.html'])
def test_terminated_while_writing(folder, tmp_path, cut):
    "Whole files or none, and no other file."
    before = names(folder)
    command = ('-c', COMMAND, cut, str(int(signal.SIGTERM)))
    process = begun(folder, *command, temporary=tmp_path)
    err = process.communicate(timeout=300)[1]
    assert process.returncode == 143 and 'Traceback' not in err, err
    assert 'interrupted; ' in err
    made = {f'{REPORT}.ipynb', f'{REPORT}.html', 'index.html'}
    assert not unfinished(folder) and names(folder) - before <= made
    for name in names(folder) & made:
        end = b'</html>' if name.endswith('.html') else b'}'
        assert (folder / name).read_bytes().rstrip().endswith(end)
    assert [p.name for p in tmp_path.iterdir()] == ['runtime']


def test_killed_outright_while_writing(folder, tmp_path):
    "What is left has a name that nothing reads; the next report removes it when it is old."
    command = ('-c', COMMAND, f'{REPORT}.html', str(int(signal.SIGKILL)))
    process = begun(folder, *command, temporary=tmp_path)
    assert process.wait(300) == -signal.SIGKILL
    left = unfinished(folder)
    assert len(left) == 1 and left.pop().endswith('.tmp')
    assert [p.name for p in tmp_path.iterdir()] == ['runtime']
    for path in folder.glob('.*.tmp'):
        os.utime(path, (time.time() - 3600,) * 2)
    process = begun(folder, '-m', 'moe_expert', temporary=tmp_path)
    assert process.wait(300) == 0, process.stderr.read()
    assert not unfinished(folder) and sweep(folder, 0) == []
    assert (folder / f'{REPORT}.html').read_text('utf-8').rstrip().endswith('</html>')


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_killed_while_the_notebook_runs(folder, tmp_path, number):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    process = begun(folder, '-m', 'moe_expert', temporary=tmp_path)
    until = time.monotonic() + 120
    while not kernels(tmp_path) and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(2)
    assert process.poll() is None
    process.send_signal(number)
    err = process.communicate(timeout=60)[1]
    expected = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -signal.SIGKILL}
    assert process.returncode == expected[number], err
    assert 'Traceback' not in err, err
    until = time.monotonic() + 30
    while kernels(tmp_path) and time.monotonic() < until:
        time.sleep(0.5)
    assert not kernels(tmp_path)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    left = {p.suffix for p in tmp_path.iterdir() if p.name != 'runtime'}
    # Jupyter's own note of the ports, in the system's folder for temporary files
    assert left <= ({'.json'} if number == signal.SIGKILL else set())
