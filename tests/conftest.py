"What all tests share: where the real benchmark files are, and one thread per process."

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault(
    'OMP_NUM_THREADS', '1'
)  # before torch is imported; results then do not depend on the machine's load
os.environ.setdefault('MOE_EXPERT_STORAGE_WAIT', '0')  # for servers that are not there


def find_data_dir():
    "The folder with bail/, german/, math/, por/ and facts.json, or None."
    named = os.environ.get('MOE_EXPERT_DATA')
    places = [Path(named)] if named else [ROOT.parent / 'shared' / 'data', ROOT / 'shared' / 'data']
    return next((p.resolve() for p in places if (p / 'facts.json').is_file()), None)


@pytest.fixture(scope='session')
def data_dir():
    "Folder of the benchmark data; without it a test is skipped loudly, or fails if `CI` is set."
    found = find_data_dir()
    if found is None:
        why = (
            'the benchmark files are missing: set MOE_EXPERT_DATA to the folder with '
            'bail/, german/, math/, por/ and facts.json'
        )
        if os.environ.get('CI'):
            pytest.fail(why)
        warnings.warn(why, stacklevel=1)
        pytest.skip(why)
    return found


@pytest.fixture(scope='session')
def public():
    "Folder of the public tables in their published form; without it a test is skipped."
    found = [
        p for p in (ROOT.parent / 'shared' / 'public', ROOT / 'shared' / 'public') if p.is_dir()
    ]
    if not found:
        pytest.skip('the public tables are missing: put them into ../shared/public')
    return found[0].resolve()


@pytest.fixture(scope='session')
def repo_root():
    "The folder of settings.ini."
    return ROOT


def marked_clone(folder, module):
    "The package in a folder where it is not installed; one module says where it was imported from."
    package = folder / 'moe_expert'
    shutil.copytree(ROOT / 'moe_expert', package, ignore=shutil.ignore_patterns('__pycache__'))
    with open(package / module, 'a') as file:
        file.write("\nimport sys; print('imported from', __file__, file=sys.stderr)\n")
    return folder


def run_python(*command, cwd, timeout=120):
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def same_edges(edges):
    "Lists of edges that are one graph: [2, E] as tensors, arrays and lists, by name."
    import torch

    one_way = edges[:, edges[0] < edges[1]]
    order = torch.randperm(one_way.shape[1], generator=torch.Generator().manual_seed(0))
    loops = torch.arange(5).expand(2, -1)
    twice = torch.cat([one_way, one_way.flip(0)[:, ::3], one_way[:, ::2], loops], 1)
    return {
        'both ways': torch.cat([one_way.flip(0), one_way], 1),
        'one way': one_way,
        'the other way': one_way.flip(0)[:, order],
        'repeated, with self-loops': twice[:, torch.arange(twice.shape[1] - 1, -1, -1)],
        'int32': one_way.int(),
        'array': one_way[:, order].numpy(),
        'lists': one_way.tolist(),
    }


@pytest.fixture
def forbid_training(monkeypatch):
    "Make functions fail the test when they are called; each is a module and a name in it."

    def fail(*args, **kwargs):
        raise AssertionError('something was trained')

    def forbid(*places):
        for module, name in places:
            monkeypatch.setattr(module, name, fail)

    return forbid


@pytest.fixture
def refused(capsys):
    "Call a script's `main` with wrong arguments: exit code 2, one line, nothing on stdout."

    def call(main, wrong, says):
        with pytest.raises(SystemExit) as end:
            main(wrong)
        out, err = capsys.readouterr()
        assert (
            end.value.code == 2
            and out == ''
            and err.count('\n') == 1
            and says in err
            and '--help' in err
        )

    return call


@pytest.fixture
def fails_in_one_line(capsys, tmp_path):
    "Call a script's `main` with what raises an error of the package: it returns 1 with one line."

    def call(main, few):
        for wrong, says in (
            (['--edition', 'offline'], 'no offline edition'),
            (['--device', 'nowhere'], 'nowhere'),
            (['--drop', 'c99'], 'c99'),
        ):
            assert main([*few, '--cache_dir', str(tmp_path), *wrong]) == 1
            err = capsys.readouterr().err
            assert err.startswith('error: ') and err.count('\n') == 1 and says in err
        (tmp_path / 'file').write_text('')
        assert main([*few, '--cache_dir', str(tmp_path / 'file')]) == 1

    return call


# What a process prints to tell its own peak memory in MiB. Its `ru_maxrss` would not do: it counts
# the process that started it, too.
PRINT_PEAK = """
import re
print(int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1]) / 1024)
"""
