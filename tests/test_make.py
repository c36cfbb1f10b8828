"""The Makefile and .ci/environment.py: values are words, never code; foreign folders stay.

Nothing is installed here. The python that `make` calls is a script that writes down its words.
"""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = pytest.mark.skipif(os.name == 'nt' or not shutil.which('make'), reason='needs make')

# what a shell, a shell inside quotes, and make would run
CODE = """'"; touch shell; `touch tick` $(touch paren) $(shell touch make) $$(touch twice) # \\"""
FOLDER = 'a "b" $(touch paren) $HOME `touch tick` \'c\' ü & d'

# a python that writes what it is called with, and runs what gives ARGS their words
RECORDER = f"""#!{sys.executable}
import json, os, sys
if sys.argv[1] == '.ci/with_args.py':
    sys.executable = os.path.abspath(sys.argv[0])
    sys.argv = sys.argv[1:]
    exec(open(sys.argv[0], encoding='utf-8').read())
with open('calls.jsonl', 'a') as file:
    file.write(json.dumps(sys.argv[1:]) + chr(10))
"""


def script(path, text=RECORDER):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def clone(tmp_path):
    "Makefile and .ci in a folder whose name is hostile, too."
    folder = tmp_path / FOLDER
    (folder / '.ci').mkdir(parents=True)
    shutil.copy(ROOT / 'Makefile', folder)
    for name in ('environment.py', 'with_args.py'):
        shutil.copy(ROOT / '.ci' / name, folder / '.ci')
    for name in ('settings.ini', 'setup.py'):
        shutil.copy(ROOT / name, folder)
    script(folder / '.venv' / 'bin' / 'python')
    script(folder / 'python')
    return folder


def make(clone, *words, **variables):
    "Run make; → (exit code, words of each call, stderr)."
    clean = {k: v for k, v in os.environ.items() if not k.startswith('MAKE') and k != 'MFLAGS'}
    (clone / 'calls.jsonl').unlink(missing_ok=True)
    done = subprocess.run(
        ['make', *words], cwd=clone, env=clean | variables, capture_output=True, text=True
    )
    calls = clone / 'calls.jsonl'
    lines = calls.read_text().splitlines() if calls.exists() else []
    return done.returncode, [json.loads(line) for line in lines], done.stderr


def files(clone):
    return {str(p.relative_to(clone)) for p in clone.rglob('*')} - {'calls.jsonl'}


GIVEN = {name: name.lower() + CODE for name in ('OUT', 'DATASET', 'EXPERT', 'CACHE_DIR', 'SEED')}


@pytest.mark.parametrize('target', ['tune', 'moe'])
@pytest.mark.parametrize('by', ['command line', 'environment'])
def test_values_are_words(clone, target, by):
    before = files(clone)
    given = {'PYTHON': './python', **GIVEN, 'ARGS': "-p groups 'a  \"b\"' -p drop '$(touch x)`y`'"}
    if by == 'command line':
        said = make(clone, target, *(f'{k}={v}' for k, v in given.items()))
    else:
        said = make(clone, target, **given)
    code, calls, err = said
    assert code == 0 and err == '', err
    assert calls[0] == ['.ci/environment.py', 'run']
    words = ['-m', 'moe_expert.run_notebook', f'nbs/{target}.ipynb', given['OUT']]
    words += ['-r', 'dataset', given['DATASET'], '-r', 'expert', given['EXPERT']]
    words += ['-p', 'seed', given['SEED'], '-r', 'cache_dir', given['CACHE_DIR']]
    words += ['-p', 'groups', 'a  "b"', '-p', 'drop', '$(touch x)`y`']
    assert calls[1:] == [words]
    assert files(clone) == before


def test_python_and_environment_with_hostile_names(clone):
    script(clone / ('py ' + CODE.replace('/', '')))
    script(clone / ('v ' + CODE) / 'bin' / 'python')
    before = files(clone)
    code, calls, err = make(clone, 'tune', f'PYTHON=./py {CODE}', f'VENV=v {CODE}')
    assert code == 0 and len(calls) == 2, err
    code, calls, err = make(clone, 'tune', 'PYTHON=/nowhere/`touch tick` "$(touch paren)"')
    assert code and not calls and '/nowhere/`touch tick` "$(touch paren)" is not here' in err
    assert files(clone) == before


def test_without_values_the_defaults(clone):
    tune = make(clone, 'tune', 'PYTHON=./python', 'VENV=', 'CACHE_DIR=')[1][1]
    assert tune[2:] == ['nbs/tune.ipynb', 'out.ipynb', '-r', 'dataset', 'bail']
    assert make(clone, 'moe', 'PYTHON=./python')[1][1][3] == 'out_moe.ipynb'
    assert make(clone, 'moe', 'PYTHON=./python', 'N_TRIALS=3')[1][1][-3:] == ['-p', 'n_trials', '3']


@pytest.mark.parametrize('target', ['test', 'bench', 'chapters'])
def test_args_are_words_of_every_target(clone, target):
    code, calls, err = make(
        clone, target, 'PYTHON=./python', f'ARGS=-k \'a and b\' "{"$(touch x)"}"'
    )
    assert code == 0, err
    assert calls[-1][-3:] == ['-k', 'a and b', '$(touch x)']
    code, calls, err = make(clone, target, 'PYTHON=./python', "ARGS=it's")
    assert code and "ARGS=it's: No closing quotation" in err and 'Traceback' not in err


def environment(clone, venv=None):
    "Run .ci/environment.py as `make env` does, without a network: what it would install fails."
    clean = {k: v for k, v in os.environ.items() if k != 'VENV'}
    clean |= {'PIP_NO_INDEX': '1', 'PIP_DISABLE_PIP_VERSION_CHECK': '1'}
    return subprocess.run(
        [sys.executable, '.ci/environment.py', 'run'],
        cwd=clone,
        env=clean | ({'VENV': venv} if venv else {}),
        capture_output=True,
        text=True,
    )


def foreign_venv(path):
    (path / 'bin').mkdir(parents=True)
    (path / 'pyvenv.cfg').write_text('home = /usr/bin\n')
    script(path / 'bin' / 'python')


def conda(path):
    (path / 'conda-meta').mkdir(parents=True)


def plain(path):
    path.mkdir()
    (path / 'diary.txt').write_text('do not lose this')


def link(path):
    (path.parent / 'real').mkdir()
    (path.parent / 'real' / 'moe_expert-ready.json').write_text('{}')
    path.symlink_to('real')


def dangling(path):
    path.symlink_to('nowhere')


def file(path):
    path.write_text('do not lose this')


def tree(folder):
    return {
        str(p.relative_to(folder)): os.readlink(p)
        if p.is_symlink()
        else p.is_file() and p.read_bytes()
        for p in folder.rglob('*')
        if p.name != '.venv.lock'
    }


@pytest.mark.parametrize('kind', [foreign_venv, conda, plain, link, dangling, file])
@pytest.mark.parametrize('name', ['.venv', 'my $(envs)'])
def test_what_was_not_made_here_stays(clone, kind, name):
    shutil.rmtree(clone / '.venv')
    kind(clone / name)
    before = tree(clone)
    done = environment(clone, name)
    assert done.returncode == 1 and 'Traceback' not in done.stderr, done.stderr
    assert name in done.stderr and f'{name}-moe' in done.stderr and 'make VENV=' in done.stderr
    assert tree(clone) == before


def test_another_folder_is_proposed_that_is_free(clone):
    (clone / '.venv-moe').mkdir()
    assert 'make VENV=.venv-moe2 ' in environment(clone).stderr


# what stands for `venv` and `pip` where .ci/environment.py is imported
def fake_run(module, monkeypatch, succeeds=True):
    ran = []

    def run(command, **_):
        ran.append(command)
        if command[1:3] == ['-m', 'venv']:
            script(Path(module.PYTHON))
            (Path(module.BIN) / 'pip').write_text(f'#!{module.PYTHON}\n')
        return subprocess.CompletedProcess(command, 0 if succeeds else 1)

    monkeypatch.setattr(module.subprocess, 'run', run)
    return ran


def loaded(clone, monkeypatch, venv):
    import importlib.util

    monkeypatch.setenv('VENV', venv)
    spec = importlib.util.spec_from_file_location('environment', clone / '.ci' / 'environment.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('venv', ['other', 'deep/other "x"', '.venv'])
def test_an_environment_of_its_own_is_made_and_mended(clone, monkeypatch, venv):
    shutil.rmtree(clone / '.venv')
    (clone / '.venv.old').mkdir()  # somebody's
    (clone / '.venv.old' / 'diary.txt').write_text('')
    module = loaded(clone, monkeypatch, venv)
    ran = fake_run(module, monkeypatch)
    module.main('run')
    assert [sys.executable, '-m', 'venv', str(clone / venv)] in ran
    assert set(json.loads(Path(module.STAMP).read_text())) == {'run'}
    ran.clear()
    module.main('run')
    assert len(ran) == 1  # only looked at
    (clone / venv / 'bin' / 'pip').unlink()  # damaged, and made here
    (clone / 'settings.ini').write_text((clone / 'settings.ini').read_text() + '\n')
    module.main('dev')
    assert [sys.executable, '-m', 'venv', str(clone / venv)] in ran
    assert set(json.loads(Path(module.STAMP).read_text())) == {'run', 'dev'}
    assert (clone / '.venv.old' / 'diary.txt').exists()
    assert not Path(module.OLD).exists()


def test_an_installation_that_failed_or_was_killed_is_known_as_ours(clone, monkeypatch):
    module = loaded(clone, monkeypatch, 'other')
    fake_run(module, monkeypatch)
    monkeypatch.setattr(module, 'whole', lambda *_: False)
    with pytest.raises(SystemExit, match='incomplete after a fresh installation'):
        module.main('run')
    assert not module.foreign()
    ran = fake_run(module, monkeypatch, succeeds=False)
    with pytest.raises(
        SystemExit, match='no virtual environment|could not make|installation failed'
    ):
        module.main('run')
    assert ran and not module.foreign()
    module.mark()  # as after a kill
    Path(module.STAMP).unlink(missing_ok=True)
    assert not module.foreign()
