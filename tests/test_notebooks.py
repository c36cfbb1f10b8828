"""The notebooks are the source: exported code matches them, and they keep the rules of the house.

Nothing here writes into the working tree: export and cleaning are done on a copy and compared.
Each rule is a function that returns what breaks it, and is tried on a planted fault at the end of
this file.
"""

import ast
import doctest
import importlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

sys.path[:0] = [str(ROOT / '.ci'), str(ROOT / 'docs')]
import chapters
import rooms

PACKAGE = 'moe_expert'
NOTEBOOKS = sorted(ROOT.glob('nbs/*.ipynb'))
NUMBERED = [p for p in NOTEBOOKS if p.name[0].isdigit()]
CHAPTERS = [*NUMBERED, *ROOT.glob('nbs/tutorial*.ipynb')]  # their outputs are kept
BY_PAPERMILL = [
    'tune.ipynb',
    'moe.ipynb',
    'study.ipynb',
]  # run with parameters; kept without outputs
WIDTH = 100
LONGEST, MEDIAN = 40, 20  # non-blank lines of an exported cell

# Exported cells that may be longer: (notebook, first name that the cell defines) -> reason.
LONG_CELLS = {
    ('11_cards.ipynb', 'Card'): 'the entries of a card are one list',
}

# The only room that may use private names of Optuna, which says beside each of them why.
OPTUNA_ROOM = 'tuning.trials'
# Private names of other libraries: name -> (the rooms that use it, reason).
FOREIGN_PRIVATE = {
    **dict.fromkeys(
        ('_storage', '_trial_id', '_study_id', '_directions'),
        ((OPTUNA_ROOM,), 'Optuna: trials that a dead worker left behind are closed and repeated'),
    ),
    **dict.fromkeys(
        ('_indices', '_values'),
        (
            ('data.edge_lists',),
            'torch: entries that stand twice are not added up',
        ),
    ),
    '_version': (('experts.populations',), 'torch: whether a parameter changed in place'),
    '_C': (('experts.populations',), 'torch: is the tensor inside vmap?'),
    '_functorch': (('experts.populations',), 'torch: is the tensor inside vmap?'),
}


def cells(path, kind='code'):
    return [c for c in chapters.read(path)['cells'] if c['cell_type'] == kind]


def source(cell):
    return ''.join(cell['source'])


def directive(path, name):
    "The value of the first `#| name value` of a notebook, or None."
    for cell in cells(path):
        for line in source(cell).splitlines():
            if line.startswith(f'#| {name} '):
                return line.split(maxsplit=2)[2]
    return None


def module_of(path):
    "Name of the module that a notebook exports to, below the package; a room's door is the room."
    return (directive(path, 'default_exp') or '').removesuffix('.__init__')


def file_of(module):
    "The exported file of a module."
    path = ROOT.joinpath(PACKAGE, *module.split('.'))
    return path / '__init__.py' if path.is_dir() else path.with_suffix('.py')


def modules_on_disk():
    "Every module of the package but those that no notebook writes."
    root = ROOT / PACKAGE
    for path in sorted(root.rglob('*.py')):
        name = '.'.join(path.relative_to(root).with_suffix('').parts).removesuffix('.__init__')
        hand_made = path.name == '_modidx.py' or name == '__init__'
        if not hand_made and not (path.name == '__init__.py' and not path.read_text().strip()):
            yield name


ORDER = {module_of(p): i for i, p in enumerate(NUMBERED)}


def tree(module):
    return ast.parse(file_of(module).read_text(encoding='utf-8'))


# --- Export and cleaning -----------------------------------------------------------------


def nbdev(command, folder):
    places = [os.path.dirname(sys.executable), os.environ.get('PATH', '')]
    script = shutil.which(command, path=os.pathsep.join(places))
    assert script, f'{command} is not installed: run `make env-dev`'
    subprocess.run([script], cwd=folder, check=True, capture_output=True, text=True, timeout=300)


def exported_files(folder):
    root = folder / PACKAGE
    return {
        str(p.relative_to(root)): p.read_text(encoding='utf-8')
        for p in root.rglob('*.py')
        if p.name != '__init__.py' or p.read_text(encoding='utf-8').strip()
    }


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "The notebooks and settings in a folder of their own, with no exported module."
    folder = tmp_path_factory.mktemp('copy')
    (folder / PACKAGE).mkdir()
    for name in ('settings.ini', 'README.md', f'{PACKAGE}/__init__.py'):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / 'nbs', folder / 'nbs', ignore=shutil.ignore_patterns('.*'))
    return folder


def test_exported_modules_are_in_sync(copy):
    nbdev('nbdev_export', copy)
    fresh, here = exported_files(copy), exported_files(ROOT)
    left_over = sorted(here.keys() - fresh.keys())
    assert not left_over, f'no notebook exports {left_over}: delete them'
    differ = sorted(n for n in fresh if here.get(n) != fresh[n])
    assert not differ, (
        f'{differ} differ from what the notebooks export: run `make export` '
        f'(edit notebooks, never {PACKAGE}/*.py)'
    )


def test_notebooks_are_clean(copy):
    nbdev('nbdev_clean', copy)
    differ = [p.name for p in NOTEBOOKS if p.read_bytes() != (copy / 'nbs' / p.name).read_bytes()]
    assert not differ, f'{differ} are not clean: run `make export`'


@pytest.mark.parametrize('path', NUMBERED, ids=lambda p: p.name)
def test_numbered_notebook_exports_to_a_module(path):
    module = module_of(path)
    assert module, f'{path.name} has no `#| default_exp`'
    assert file_of(module).is_file(), f'{path.name} exports to {module}, which is not there'
    assert list(ORDER).index(module) == ORDER[module], f'two notebooks export to {module}'


def test_every_module_comes_from_a_notebook():
    modules = [module_of(p) for p in NUMBERED]
    assert sorted(modules) == sorted(modules_on_disk())


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.name)
def test_opens_with_title_and_subtitle(path):
    first = chapters.read(path)['cells'][0]
    lines = [x for x in source(first).splitlines() if x.strip()]
    assert first['cell_type'] == 'markdown'
    assert lines[0].startswith('# ') and lines[1].startswith('> ')


@pytest.mark.parametrize('name', BY_PAPERMILL)
def test_papermill_parameters_are_tagged(name):
    path = ROOT / 'nbs' / name
    tagged = [c for c in cells(path) if 'parameters' in c['metadata'].get('tags', [])]
    assert len(tagged) == 1, 'without exactly one tag `parameters`, papermill -p changes nothing'


# --- Outputs -----------------------------------------------------------------------------


@pytest.mark.parametrize('path', CHAPTERS, ids=lambda p: p.name)
def test_outputs_come_from_the_code_above_them(path):
    assert not chapters.stale(path), (
        f'code changed after its outputs: make chapters ARGS={path.name}'
    )
    assert not chapters.noise(path), f'{path.name}: {chapters.noise(path)}'
    size = path.stat().st_size
    assert size <= chapters.LARGEST, f'{path.name} has {size:,} bytes: make its pictures smaller'


@pytest.mark.parametrize('name', BY_PAPERMILL)
def test_notebooks_for_papermill_are_kept_without_outputs(name):
    assert not [c['id'] for c in cells(ROOT / 'nbs' / name) if c['outputs']]


# --- Imports -----------------------------------------------------------------------------


def imports(module, code, known=ORDER):
    "(imported module, imported name) of every import of the package, inside functions too."
    package = [PACKAGE, *module.split('.')]
    if not file_of(module).name == '__init__.py':
        package = package[:-1]
    for node in ast.walk(code):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith(PACKAGE + '.'):
                    yield alias.name.removeprefix(PACKAGE + '.'), None
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            full = '.'.join([*base, *([node.module] if node.module else [])])
            if full != PACKAGE and not full.startswith(PACKAGE + '.'):
                continue
            below = full.removeprefix(PACKAGE).strip('.')
            for alias in node.names:
                inner = f'{below}.{alias.name}'.strip('.')
                yield (inner, None) if inner in known else (below, alias.name)


def upward(module, code):
    "Imports of what does not stand above the module."
    place = ORDER.get(module, len(ORDER))
    return [
        f'{module} imports {name or "the package"}'
        for name, what in imports(module, code)
        if ORDER.get(name, -1 if what == '__version__' else len(ORDER)) >= place
    ]


def private_imports(module, code):
    "Private names taken from another module, by import or through the imported module."
    taken, modules = [], set()
    for node in ast.walk(code):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules |= {a.asname or a.name for a in node.names}
    for name, what in imports(module, code):
        if what and what.startswith('_') and what != '__version__':
            taken.append(f'{module} imports {what} from {name}')
    own_modules = {name.split('.')[-1] for name, what in imports(module, code) if what is None}
    for node in ast.walk(code):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            private = node.attr.startswith('_') and not node.attr.startswith('__')
            if private and node.value.id in modules & own_modules:
                taken.append(f'{module} uses {node.value.id}.{node.attr}')
    return taken


def defined(code):
    "Every name that the code itself gives to something."
    for node in ast.walk(code):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def foreign_private(module, code, own):
    "Private attributes and modules of other libraries, where this module may not use them."
    names = set()
    for node in ast.walk(code):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {*(node.module or '').split('.'), *(a.name for a in node.names)}
        elif isinstance(node, ast.Import):
            names |= {part for a in node.names for part in a.name.split('.')}
    private = {n for n in names if re.match(r'_[^_]', n)} - own
    return [
        f'{module} uses {n}'
        for n in sorted(private)
        if module not in FOREIGN_PRIVATE.get(n, ((), ''))[0]
    ]


def circles(edges):
    "Nodes of a graph {node: its targets} that reach themselves."

    def reached(node, seen):
        for target in edges.get(node, ()):
            if target not in seen:
                seen.add(target)
                reached(target, seen)
        return seen

    return sorted(n for n in edges if n in reached(n, set()))


def test_each_module_imports_only_what_stands_above_it():
    wrong = [line for m in ORDER for line in upward(m, tree(m))]
    assert not wrong, '\n'.join(wrong)


def test_no_circle_of_imports():
    edges = {m: {name for name, _ in imports(m, tree(m))} - {m} for m in ORDER}
    assert not circles(edges)


def test_private_names_stay_in_their_module():
    wrong = [line for m in ORDER for line in private_imports(m, tree(m))]
    assert not wrong, '\n'.join(wrong)


def test_private_names_of_libraries_are_used_in_their_one_room():
    own = {name for m in ORDER for name in defined(tree(m))}
    wrong = [line for m in ORDER for line in foreign_private(m, tree(m), own)]
    assert not wrong, '\n'.join(wrong)


def test_no_list_of_private_names_is_longer_than_its_use():
    used = {n.attr for m in ORDER for n in ast.walk(tree(m)) if isinstance(n, ast.Attribute)}
    optuna = {n for n, (where, _) in FOREIGN_PRIVATE.items() if where == (OPTUNA_ROOM,)}
    assert set(FOREIGN_PRIVATE) - optuna <= used


def test_rooms_are_drawn_as_they_import_each_other():
    drawn = rooms_drawn((ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8'))
    real = rooms_imported()
    assert drawn == real, (
        f'to be drawn: {sorted(real - drawn)}; to be deleted: {sorted(drawn - real)}'
    )


def rooms_imported():
    "Arrows between rooms that do not follow from others; `errors` and `parameters` are below all."
    arrows = {
        (rooms.room_of(m), rooms.room_of(name))
        for m in ORDER
        for name, _ in imports(m, tree(m))
        if name
        and rooms.room_of(m) != rooms.room_of(name)
        and rooms.room_of(name) not in ('errors', 'parameters')
    }
    edges = {}
    for a, b in arrows:
        edges.setdefault(a, set()).add(b)

    def below(node):
        direct = edges.get(node, set())
        return direct.union(*(below(n) for n in direct))

    assert not circles(edges), f'rooms import each other in a circle: {circles(edges)}'
    return {(a, b) for a, b in arrows if not any(b in below(c) for c in edges[a] - {b})}


def rooms_drawn(page):
    "Arrows `a --> b` of the drawing: a imports b."
    (drawing,) = re.findall(r'```mermaid\n(.*?)```', page, flags=re.S)
    return set(re.findall(r'(\w+)\s*-->\s*(\w+)', drawing))


# --- Form of cells and lines -------------------------------------------------------------


def exported(path):
    "(first name, non-blank lines) of each exported cell."
    for cell in cells(path):
        lines = source(cell).splitlines()
        if any(re.match(r'#\| exports?i?\b', line) for line in lines):
            code = [x for x in lines if x.strip() and not x.startswith('#|')]
            name = re.search(
                r'^(?:def\s+|class\s+|(?=\w+\b.* = ))(\w+)', '\n'.join(code), flags=re.M
            )
            yield (name[1] if name else ''), len(code)


def too_long(sizes, allowed):
    "Exported cells over the limit that have no reason on the list: {(notebook, name): lines}."
    return {where: n for where, n in sizes if n > LONGEST and where not in allowed}


def all_exported():
    return [((p.name, name), n) for p in NUMBERED for name, n in exported(p)]


def test_exported_cells_are_short():
    sizes = all_exported()
    assert not too_long(sizes, LONG_CELLS), too_long(sizes, LONG_CELLS)
    assert statistics.median(n for _, n in sizes) <= MEDIAN


def test_list_of_long_cells_is_short_and_true():
    assert len(LONG_CELLS) <= 10 and all(LONG_CELLS.values())
    long = {where for where, n in all_exported() if n > LONGEST}
    assert set(LONG_CELLS) <= long, f'no longer over {LONGEST} lines: {set(LONG_CELLS) - long}'


def wide(text, prose=False):
    "(line number, length) of lines over the width; in prose not tables, formulas, URLs."
    found, fence, formula = [], '', False
    for i, line in enumerate(text.splitlines(), 1):
        stripped = line.lstrip()
        if prose and stripped.startswith('```'):
            fence = '' if fence else (stripped[3:].strip() or 'text')
        displayed = formula or stripped.startswith('$$')
        formula ^= not fence and line.count('$$') % 2 == 1
        unbroken = len(stripped.split()) <= 2 or 'http' in line
        free = stripped.startswith(('|', '![', '#')) or fence == 'text' or unbroken or displayed
        if len(line) > WIDTH and not (prose and free) and not line.rstrip().endswith('# fmt: skip'):
            found.append((i, len(line)))
    return found


def tracked(*patterns):
    "Files that git has or would take."
    command = ['git', 'ls-files', '-co', '--exclude-standard', '--', *patterns]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in done.stdout.split('\n') if name and (ROOT / name).is_file()]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.name)
def test_lines_of_notebooks_fit(path):
    wrong = [
        (c['id'], *where)
        for c in chapters.read(path)['cells']
        for where in wide(source(c), c['cell_type'] == 'markdown')
    ]
    assert not wrong, f'{path.name}, (cell, line, length): {wrong}'


def test_lines_of_files_fit():
    generated = {file_of(m) for m in ORDER} | {ROOT / PACKAGE / '_modidx.py'}
    written_by_program = {ROOT / 'benchmarks/RESULTS.md', ROOT / 'benchmarks/BACKBONES.md'}
    wrong = {}
    for path in tracked('*.py', '*.md'):
        if path not in generated | written_by_program:
            found = wide(path.read_text(encoding='utf-8'), path.suffix == '.md')
            if found:
                wrong[str(path.relative_to(ROOT))] = found
    assert not wrong, f'(line, length): {wrong}'


def test_no_code_asks_for_cuda_by_name():
    files = [*tracked('*.py'), *NOTEBOOKS]
    pattern = re.compile(r'\.cuda' r'\(\)')
    assert not [p.name for p in files if pattern.search(p.read_text(encoding='utf-8'))]


# --- The package as it is used -----------------------------------------------------------


def test_importing_the_package_is_light():
    code = (
        "import sys, moe_expert; print({'torch', 'numpy', 'pandas', 'optuna'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == 'set()'


LIGHT = {'fastcore', 'moe_expert'}  # what the modules may add to torch


@pytest.mark.parametrize('first_use', ['import moe_expert.trainer', 'moe_expert.ExpertTuner'])
def test_training_imports_torch_alone(first_use):
    """Slow packages (Optuna, pandas, PyG, scikit-learn) are imported where they are used."""
    code = (
        'import sys, moe_expert, torch\n'
        "def packages(): return {name.split('.')[0] for name in sys.modules}\n"
        'before = packages()\n'
        f'{first_use}\n'
        "print(*(packages() - before - sys.stdlib_module_names | {'moe_expert'}))"
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert set(done.stdout.split()) <= LIGHT


def test_unknown_names_are_attribute_errors():
    import moe_expert

    with pytest.raises(AttributeError, match='no attribute'):
        _ = moe_expert.nothing_of_that_name
    assert 'ExpertTuner' in dir(moe_expert)


@pytest.mark.parametrize('name', list(ORDER))
def test_examples_in_docstrings(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f'{PACKAGE}.{name}')
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    outcome = doctest.testmod(module, optionflags=flags)
    assert not outcome.failed, f'{outcome.failed} of {outcome.attempted} examples fail, see above'


# --- Each rule on a planted fault --------------------------------------------------------

TOP, BOTTOM = NUMBERED[-1], NUMBERED[0]


@pytest.mark.parametrize(
    'form',
    [
        f'from moe_expert.{module_of(TOP)} import anything',
        f'import moe_expert.{module_of(TOP)}',
        f'def f():\n    from .{module_of(TOP)} import anything',
        f'class C:\n    def f(self):\n        from moe_expert.{module_of(TOP)} import x',
        'from . import ExpertTuner',
    ],
)
def test_an_import_upwards_is_seen(form):
    assert upward(module_of(BOTTOM), ast.parse(form))


def test_a_relative_import_from_a_room_is_read_right():
    inner = next(m for m in ORDER if '.' in m and m.split('.')[0] == 'scores')
    code = ast.parse(
        'from ..errors import DataError\nfrom .metrics import f1\nfrom . import metrics'
    )
    assert [name for name, _ in imports(inner, code)] == [
        'errors',
        'scores.metrics',
        'scores.metrics',
    ]


def test_a_private_name_from_elsewhere_is_seen():
    code = ast.parse('from .scores.metrics import _checked')
    assert private_imports('trainer', code)
    assert private_imports('trainer', ast.parse('from .scores import metrics\nmetrics._checked()'))
    assert not private_imports('trainer', ast.parse('from .scores import metrics\nmetrics.f1()'))


def test_a_private_name_of_optuna_outside_its_room_is_seen():
    code = ast.parse(
        'study._storage.get_trial(trial._trial_id)\nfrom optuna.storages._base import x'
    )
    assert foreign_private('trainer', code, set()) == [
        'trainer uses _base',
        'trainer uses _storage',
        'trainer uses _trial_id',
    ]
    assert foreign_private(OPTUNA_ROOM, code, {'_base'}) == []


def test_a_circle_is_seen():
    assert circles({'a': {'b'}, 'b': {'c'}, 'c': {'b'}, 'd': {'a'}}) == ['b', 'c']


def test_a_long_cell_is_seen():
    sizes = [(('01_x.ipynb', 'f'), 41), (('01_x.ipynb', 'g'), 40), (('02_y.ipynb', 'f'), 50)]
    assert too_long(sizes, {('02_y.ipynb', 'f'): 'a table'}) == {('01_x.ipynb', 'f'): 41}


def test_a_wide_line_is_seen():
    words = 'word ' * 21
    assert wide(words) and wide(words, prose=True) and wide(f'```python\n{words}\n```', prose=True)
    assert not wide(f'| {words} |\n```text\n{words}\n```\n{"x" * 120}', prose=True)
    assert not wide(f'x = [{words}]  # fmt: skip')
    assert not wide(f'$${words}$$\n$$\n{words}\n$$', prose=True)
    assert wide(f'$${words}$$\n{words}', prose=True) == [(2, len(words))]


def test_an_arrow_too_many_or_too_few_is_seen():
    page = 'text\n```mermaid\nflowchart TD\n    a --> b\n    b-->c\n```\n'
    assert rooms_drawn(page) == {('a', 'b'), ('b', 'c')}


def test_changed_code_makes_outputs_stale(tmp_path):
    path = Path(shutil.copy(CHAPTERS[0], tmp_path))
    notebook = chapters.read(path)
    notebook['metadata'][chapters.KEY] = chapters.digest(notebook)
    chapters.write(notebook, path)
    assert not chapters.stale(path)
    next(c for c in notebook['cells'] if c['cell_type'] == 'markdown')['source'] = 'other prose'
    chapters.write(notebook, path)
    assert not chapters.stale(path), 'prose has no outputs'
    next(c for c in notebook['cells'] if c['cell_type'] == 'code')['source'] = 'changed = 1'
    chapters.write(notebook, path)
    assert chapters.stale(path)


def test_cleaning_keeps_outputs_and_strips_noise(tmp_path, copy):
    output = {
        'data': {'text/plain': ['3']},
        'execution_count': 7,
        'metadata': {},
        'output_type': 'execute_result',
    }
    cell = {
        'cell_type': 'code',
        'execution_count': 7,
        'id': 'a',
        'metadata': {'collapsed': True},
        'outputs': [output],
        'source': ['1 + 2'],
    }
    notebook = {
        'cells': [cell],
        'metadata': {chapters.KEY: 'abc', 'language_info': {'name': 'python'}},
        'nbformat': 4,
        'nbformat_minor': 5,
    }
    shutil.copy(ROOT / 'settings.ini', tmp_path)
    (tmp_path / 'nbs').mkdir()
    path = tmp_path / 'nbs' / 'x.ipynb'
    path.write_text(json.dumps(notebook))
    nbdev('nbdev_clean', tmp_path)
    clean = chapters.read(path)
    assert clean['metadata'] == {chapters.KEY: 'abc'}
    (cell,) = clean['cells']
    assert cell['execution_count'] is None and cell['metadata'] == {}
    assert cell['outputs'] == [output | {'execution_count': None}]


@pytest.mark.parametrize(
    'raw, kept',
    [
        (f'{ROOT}/.venv/lib/python3.11/site-packages/tqdm/auto.py:21: W', 'tqdm/auto.py:21: W'),
        ('/tmp/ipykernel_12/345.py:3: UserWarning', 'cell: UserWarning'),
        ('saved in /tmp/tmpab12cd34/x.json', 'saved in folder/x.json'),
        ('<Figure at 0x7f00aa11bb22>', '<Figure>'),
        (
            '<style>#T_1a2b3 {}</style><table id="T_1a2b3">',
            '<style>#T_00000 {}</style><table id="T_00000">',
        ),
        ('10%\r55%\r100%', '100%'),
        ('\x1b[31mred\x1b[0m', 'red'),
    ],
)
def test_what_differs_between_runs_is_taken_out(raw, kept):
    assert chapters.scrubbed(raw, {}) == kept
