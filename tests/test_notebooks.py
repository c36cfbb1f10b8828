"""The notebooks are the source: what is exported matches them, they are saved clean, and they build on each other in one direction.

Nothing here writes into the working tree: export and cleaning are done on a copy and compared.
"""

import ast
import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

NOTEBOOKS = sorted(ROOT.glob('nbs/*.ipynb'))
NUMBERED = [p for p in NOTEBOOKS if p.name[0].isdigit()]
MODULES = sorted(
    p for p in ROOT.glob('moe_expert/*.py') if p.name not in ('__init__.py', '_modidx.py')
)
PAPERMILL = ['tune.ipynb', 'moe.ipynb', 'study.ipynb']  # run by papermill with parameters


def cells(path, kind='code'):
    return [
        c for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == kind
    ]


def exports_to(path):
    "Name of the module a notebook writes, or None."
    for c in cells(path):
        for line in ''.join(c['source']).splitlines():
            if line.startswith('#| default_exp '):
                return line.split()[-1]
    return None


def nbdev(command, folder):
    script = shutil.which(
        command, path=os.pathsep.join([os.path.dirname(sys.executable), os.environ.get('PATH', '')])
    )
    assert script, f'{command} is not installed: run `make env-dev`'
    subprocess.run([script], cwd=folder, check=True, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "The notebooks and settings in a folder of their own, with no exported module."
    folder = tmp_path_factory.mktemp('copy')
    (folder / 'moe_expert').mkdir()
    (folder / 'nbs').mkdir()
    for name in ('settings.ini', 'README.md', 'moe_expert/__init__.py'):
        shutil.copy(ROOT / name, folder / name)
    for nb in NOTEBOOKS:
        shutil.copy(nb, folder / 'nbs')
    return folder


def test_exported_modules_are_in_sync(copy):
    nbdev('nbdev_export', copy)
    fresh = {p.name: p.read_text(encoding='utf-8') for p in copy.glob('moe_expert/*.py')}
    here = {p.name: p.read_text(encoding='utf-8') for p in ROOT.glob('moe_expert/*.py')}
    left_over = sorted(here.keys() - fresh.keys())
    assert not left_over, f'no notebook exports {left_over}: delete them'
    differ = sorted(n for n in fresh if here.get(n) != fresh[n])
    assert not differ, (
        f'{differ} differ from what the notebooks export: run `make export` (and edit notebooks, never moe_expert/*.py)'
    )


def test_notebooks_are_clean(copy):
    nbdev('nbdev_clean', copy)
    differ = [p.name for p in NOTEBOOKS if p.read_bytes() != (copy / 'nbs' / p.name).read_bytes()]
    assert not differ, f'{differ} are not clean: run `make export`'


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.name)
def test_no_outputs_are_saved(path):
    for c in cells(path):
        assert not c['outputs'], f'saved output in {path.name}, cell {c.get("id")}'
        assert c['execution_count'] is None


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.name)
def test_opens_with_title_and_subtitle(path):
    first = json.loads(path.read_text(encoding='utf-8'))['cells'][0]
    lines = [x for x in ''.join(first['source']).splitlines() if x.strip()]
    assert (
        first['cell_type'] == 'markdown' and lines[0].startswith('# ') and lines[1].startswith('> ')
    )


@pytest.mark.parametrize('path', NUMBERED, ids=lambda p: p.name)
def test_numbered_notebook_exports_the_module_of_its_name(path):
    assert exports_to(path) == path.stem.split('_', 1)[1]


@pytest.mark.parametrize('name', PAPERMILL)
def test_papermill_parameters_are_tagged(name):
    path = ROOT / 'nbs' / name
    tagged = [c for c in cells(path) if 'parameters' in c['metadata'].get('tags', [])]
    assert len(tagged) == 1, (
        'exactly one cell carries the tag `parameters`; without it papermill -p changes nothing'
    )


def top_level_imports(path):
    "Modules of this package that a module imports when it is itself imported."
    for node in ast.parse(path.read_text(encoding='utf-8')).body:
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            yield from [node.module] if node.module else [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or '').startswith('moe_expert.'):
            yield node.module.split('.')[1]


def test_each_module_imports_only_what_stands_above_it():
    place = {exports_to(p): i for i, p in enumerate(NUMBERED)}
    wrong = [
        f'{m.stem} imports {name}'
        for m in MODULES
        for name in top_level_imports(m)
        if place.get(name, -1) >= place.get(m.stem, len(place))
    ]
    assert not wrong, wrong


def test_importing_the_package_is_light():
    code = "import sys, moe_expert; print([m for m in ('torch', 'numpy', 'pandas', 'optuna') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == '[]'


def test_unknown_names_are_attribute_errors():
    import moe_expert

    with pytest.raises(AttributeError, match='no attribute'):
        _ = moe_expert.nothing_of_that_name
    assert 'ExpertTuner' in dir(moe_expert)
