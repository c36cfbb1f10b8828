"""Files that a stranger wrote: refused in time, with little memory, by name, and one at a time."""

import bz2
import configparser
import gzip
import io
import json
import lzma
import shutil
import sqlite3
import subprocess
import sys
import zipfile

import openpyxl
import pytest
import torch
from conftest import PRINT_PEAK

from moe_expert.data.cards import read_card
from moe_expert.data.reading import read_table
from moe_expert.datasets import load_dataset
from moe_expert.errors import ArtifactError, DataError
from moe_expert.experts.initialisation import init_population, parameter_shapes
from moe_expert.experts.specs import EXPERTS
from moe_expert.mixture import checkpoints
from moe_expert.mixture.comparison import gate_usage
from moe_expert.mixture.gate import gate_shapes, uniform_mixture
from moe_expert.report.index import write_index
from moe_expert.tuning.artifacts import load_checkpoint, save_checkpoint, write_json
from moe_expert.tuning.folder import KINDS, ExpertFiles
from moe_expert.tuning.storage import open_storage, open_study

# --- checkpoints ----------------------------------------------------------------------------


def test_torch_is_newer_than_the_known_holes(repo_root):
    "CVE-2025-32434 was closed in 2.6.0, CVE-2026-24747 in 2.10.0."
    config = configparser.ConfigParser(delimiters=['='])
    config.read(repo_root / 'settings.ini')
    (line,) = [x for x in config['DEFAULT']['requirements'].split() if x.startswith('torch>')]
    assert tuple(map(int, line.split(',')[0].removeprefix('torch>=').split('.'))) >= (2, 10, 0)


def nested(value, times):
    for _ in range(times):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    'entries',
    [
        {'w': torch.zeros(1).expand(10**6, 10**6)},
        {'w': torch.zeros(8).as_strided((4, 4), (1, 1))},
        {'w': torch.zeros(8)[2:5]},
        {'w': (whole := torch.zeros(8)), 'v': whole.view(2, 4)},
        {'list': nested([1], 60)},
        {'w': torch.zeros(3).to_sparse()},
        {'w': torch.nn.Linear(2, 2)},
        {'rate': float('nan')},
    ],
    ids=['expanded', 'overlapping', 'a view', 'shared', 'aliases', 'sparse', 'a module', 'nan'],
)
def test_only_whole_tensors_and_plain_data_are_read(tmp_path, entries):
    path = tmp_path / 'bad.pt'
    torch.save({'format_version': 1} | entries, path)
    with pytest.raises(ArtifactError, match='bad.pt'):
        load_checkpoint(path)


def rewritten(path, compression=zipfile.ZIP_STORED, change=lambda name, data: data):
    "The archive again, part by part."
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, 'w', compression) as new:
        for name, data in parts.items():
            new.writestr(name, change(name, data))


def test_archives_of_other_makers_are_refused(tmp_path):
    path = tmp_path / 'bad.pt'
    save_checkpoint(path, {'w': torch.zeros(10**6)})
    rewritten(path)
    assert load_checkpoint(path)['w'].shape == (10**6,)
    rewritten(path, zipfile.ZIP_DEFLATED)
    with pytest.raises(ArtifactError, match='bad.pt .*compressed'):
        load_checkpoint(path)
    save_checkpoint(path, {'w': torch.zeros(10)})
    rewritten(path, change=lambda name, data: data[:8] if '/data/' in name else data)
    with pytest.raises(ArtifactError, match='not as many as it declares'):
        load_checkpoint(path)
    with open(path, 'wb') as file:
        file.truncate(2**40)  # a hole
    with pytest.raises(ArtifactError, match='bytes'):
        load_checkpoint(path)


HEADER = {'in_features': 5, 'hidden': 8, 'dropout': 0.3}


def mixture_payload(backbone='mlp', **changes):
    "A mixture as `MoETrainer.save` writes it, of zeros."
    shapes = {f'experts.{k}': (3, *s) for k, s in parameter_shapes(backbone, 5, 8).items()}
    shapes |= gate_shapes(5, 3, 16)
    return {
        'state_dict': {k: torch.zeros(s, dtype=torch.float64) for k, s in shapes.items()},
        'backbone': HEADER | {'name': backbone},
        'temperature': 1.0,
        'experts': dict.fromkeys(EXPERTS, ''),
        **{'settings': {}, 'stage': 'gate', 'recipe': None, 'metrics': {}},
    } | changes


def crossfit_payload(**changes):
    "The same, cross-fitted: one way, two parts, three experts at one moment."
    shapes = {f'networks.{k}': (6, *s) for k, s in parameter_shapes('gat', 5, 8).items()}
    state = {k: torch.zeros(s, dtype=torch.float64) for k, s in shapes.items()}
    state['shares'] = torch.full((2, 6), 1 / 6, dtype=torch.float64)
    crossed = {'ways': [0], 'parts': 2, 'seed': 0}
    own = {'state_dict': state, 'prices': [0.5, 1.0], 'cross_fitting': crossed}
    return mixture_payload('gat') | own | changes


@pytest.mark.parametrize('backbone', ['mlp', 'gcn', 'sage', 'gin', 'gat'])
def test_a_mixture_is_what_its_header_says(tmp_path, backbone):
    path, payload = tmp_path / 'bad.pt', mixture_payload(backbone)
    save_checkpoint(path, payload)
    assert len(checkpoints.load_mixture(path)[0].experts) == 3
    state = payload['state_dict']
    without = lambda name: {k: v for k, v in state.items() if k != name}
    wide = torch.zeros(1, dtype=torch.float64)
    for name, value in state.items():
        for wrong in (without(name), *({**state, name: v} for v in (wide, value.int(), 3))):
            save_checkpoint(path, payload | {'state_dict': wrong})
            with pytest.raises(ArtifactError, match='bad.pt .*(lacks|holds)'):
                checkpoints.load_mixture(path)


@pytest.mark.parametrize(
    'changes',
    [
        *({'backbone': HEADER | {'name': n}} for n in ('gru', 3)),
        *({'backbone': HEADER | {'name': 'mlp', 'hidden': h}} for h in (10**12, 0, -8, True, None)),
        *({'backbone': HEADER | {'name': 'mlp', 'dropout': d}} for d in (1.0, -1, 'x')),
        *({'backbone': b} for b in ({}, [], None, HEADER)),
        *({'state_dict': s} for s in ({}, [], None, {'w': 1}, {'w': {}})),
        *({'temperature': t} for t in (0, 'x', None)),
        *({'experts': e} for e in ({}, [], {'expert1': 3}, {'expert1': ''})),
        *({name: 7} for name in ('settings', 'metrics')),
    ],
    ids=str,
)
def test_headers_that_cannot_be(tmp_path, changes):
    save_checkpoint(tmp_path / 'bad.pt', mixture_payload() | changes)
    with pytest.raises(ArtifactError, match='bad.pt'):
        checkpoints.load_mixture(tmp_path / 'bad.pt')


@pytest.mark.parametrize(
    'changes',
    [
        *({'prices': p} for p in ([], [1.0], [1.0, 1.0], 'x', None, [0.5, 1.0, 2.0])),
        *(
            {'cross_fitting': {'ways': [0], 'parts': 2, 'seed': 0} | c}
            for c in (
                *({'ways': w} for w in ([], [0, 0], [0, 1, 2, 3], 'x', None)),
                *({'parts': p} for p in (0, 1, -2, 5, 10**9, 2.0, None)),
                *({'seed': s} for s in (-1, 'x')),
            )
        ),
        {'cross_fitting': {}},
    ],
    ids=str,
)
def test_headers_of_cross_fitted_mixtures_that_cannot_be(tmp_path, changes):
    path = tmp_path / 'bad.pt'
    save_checkpoint(path, crossfit_payload())
    assert len(checkpoints.load_mixture(path)[0]) == 2
    save_checkpoint(path, crossfit_payload() | changes)
    with pytest.raises(ArtifactError, match='bad.pt'):
        checkpoints.load_mixture(path)


# --- records and studies --------------------------------------------------------------------


def settings_of(name):
    own = dict.fromkeys(('dataset', 'edition', 'fingerprint'), name)
    own |= {'drop': [], 'split_seed': 20, 'seed': 0}
    return own | {'backbone': {'name': 'mlp'}, 'training': {'epochs': 1}}


def made(form):
    "A record of a form, of zeros and empty texts."
    if isinstance(form, dict):
        return {k: made(v) for k, v in form.items() if k is not str}
    form = form[0] if isinstance(form, tuple) else form
    return [] if isinstance(form, list) else form()


@pytest.fixture
def two_runs(tmp_path):
    "The records of two data sets, `bad` and `good`; all that a reader of the index needs."
    for name in ('bad', 'good'):
        files = ExpertFiles(tmp_path, name)
        write_json(
            files.settings,
            made(KINDS['settings'])
            | {'format_version': 2, 'dataset': name}
            | {'settings': settings_of(name)},
        )
        for e in EXPERTS:
            own = {'expert_type': e, 'title': f'{name} {e}', 'baselines': {}, 'outcomes': [5, 5]}
            own |= {'objective': 'utility', 'settings': settings_of(name)}
            own['floor'] = made(KINDS['expert']['floor']) | {'utility': 0.0, 'auc': 0.0}
            write_json(files.results(e), made(KINDS['expert']) | own)
    return tmp_path


def test_the_index_shows_all_but_what_is_bad(two_runs):
    files = ExpertFiles(two_runs, 'bad')
    whole = json.loads(files.results('expert2').read_text())
    record = lambda **changes: json.dumps(whole | changes)
    html = write_index(two_runs).read_text()
    assert html.count('bad expert') == html.count('good expert') == 3 and 'restore it' not in html
    for wrong in (
        '',
        '{',
        '[]',
        '[' * 10**5,
        'null',
        '{"a": 1e999}',
        '{"a": "\\ud800"}',
        record()[:-9],
    ):
        files.results('expert2').write_text(wrong)
        html = write_index(two_runs).read_text()
        assert html.count('good expert') == 3 and html.count('bad expert') == 2
        assert 'bad_expert2_tuning_results.json' in html
    for changes in (
        *({'best_metrics': whole['best_metrics'] | {'auc': auc}} for auc in (-1, 7, 10**30)),
        {'best_metrics': {}},
        *({'baselines': b} for b in (3, None, {'majority_class': None})),
        *({'outcomes': o} for o in (3, None, [], ['x', 1], [-1, 0])),
        {'baselines': {'majority_class': {'final_score': 'x'}}},
    ):
        write_json(files.results('expert2'), whole | changes)
        html = write_index(two_runs).read_text()
        assert html.count('good expert') == 3 and 'bad_expert2_tuning_results.json' in html
        assert html.count('bad expert1') == html.count('bad expert3') == 1
    files.settings.write_text('{')
    html = write_index(two_runs).read_text()
    assert html.count('good expert') == 3 and 'bad_settings.json' in html
    files.settings.unlink()
    (two_runs / 'a name_settings.json').write_text('{}')
    html = write_index(two_runs).read_text()
    assert html.count('good expert') == 3 and 'no bad_settings.json' in html and 'a name' in html


def database(path, *commands):
    with sqlite3.connect(path) as connection:
        for command in commands:
            connection.execute(command)
    connection.close()


def test_a_study_of_a_wrong_shape_is_refused_and_not_touched(tmp_path):
    files = ExpertFiles(tmp_path, 'own')
    storage = open_storage(None, files)
    open_study(storage, 'one', True).optimize(lambda trial: trial.suggest_float('x', 0, 1), 2)
    storage.engine.dispose()
    storage.remove_session()
    database(files.studies, 'PRAGMA wal_checkpoint(TRUNCATE)', 'PRAGMA journal_mode=DELETE')
    whole = files.studies.read_bytes()
    holes = bytearray(whole)
    holes[5000:20000] = b'\xff' * 15000
    for wrong in (b'no database' * 100, whole[:100], whole[: len(whole) // 2], bytes(holes)):
        files.studies.write_bytes(wrong)
        with pytest.raises(ArtifactError, match='own_studies.db.*restore it'):
            open_storage(None, files)
        assert files.studies.read_bytes() == wrong
    for commands in (
        *([f'DROP TABLE {name}'] for name in ('trials', 'studies', 'trial_params', 'trial_values')),
        ['ALTER TABLE trials RENAME COLUMN state TO status'],
    ):
        files.studies.write_bytes(whole)
        database(files.studies, *commands)
        wrong = files.studies.read_bytes()
        with pytest.raises(ArtifactError, match='own_studies.db.*its table .*restore it'):
            open_storage(None, files)
        assert files.studies.read_bytes() == wrong
    for command in ('CREATE TABLE urls (address)', 'CREATE TABLE studies (subject)'):
        files.studies.unlink()
        database(files.studies, command)
        with pytest.raises(ArtifactError, match='own_studies.db.*restore it'):
            open_storage(None, files)
    files.studies.write_bytes(whole)
    storage = open_storage(None, files)
    assert len(open_study(storage, 'one', True).trials) == 2
    storage.engine.dispose()


# --- cards ----------------------------------------------------------------------------------

ALIASES = 'a0: &a0 [x, x]\n' + ''.join(
    f'a{k}: &a{k} [{", ".join([f"*a{k - 1}"] * 9)}]\n' for k in range(1, 12)
)
MERGES = 'a0: &a0 {x: y}\n' + ''.join(
    f'a{k}: &a{k}\n  ? !!merge "<<"\n  : [{", ".join([f"*a{k - 1}"] * 9)}]\n' for k in range(1, 9)
)


@pytest.mark.parametrize(
    'text',
    [
        ALIASES,
        MERGES,
        'about: &a [*a]',
        'about: ' + '[' * 100_000,
        'about: ' + '{a: ' * 100_000,
        'about: ' + '[' * 21 + ']' * 21,
        'about:\n' + ''.join(f'{" " * k}a:\n' for k in range(1, 400)),
        'about: ' + 'x' * 2**22,
        'label: "\\ud800"',
        '? [label]\n: y',
        'folder: /etc',
        'same: {sex: }',
        'about: !!python/object/apply:os.system [ls]',
    ],
    ids=range(13),
)
def test_cards_that_are_no_cards(tmp_path, text):
    (tmp_path / 'card.yaml').write_text(f'label: y\nsensitive: sex\n{text}\n'[-(2**22) :])
    with pytest.raises(DataError, match='card.yaml') as error:
        read_card(tmp_path / 'card.yaml')
    assert len(str(error.value)) < 3000


@pytest.mark.parametrize(
    'text',
    ['[' * 100_000, '{"a": ' * 100_000, '{"about": ' + '[' * 21 + ']' * 21 + '}']
    + ['{"label": "y", "label": "z"}', '{"threshold": NaN}', '{"label": "\\ud800"}'],
    ids=range(6),
)
def test_json_cards_that_are_no_cards(tmp_path, text):
    (tmp_path / 'card.json').write_text(text)
    with pytest.raises(DataError, match='card.json'):
        read_card(tmp_path / 'card.json')


# --- tables ---------------------------------------------------------------------------------

ROWS = b'1,2\n' * 2**18
OPENERS = {'gz': gzip.open, 'xz': lzma.open, 'bz2': bz2.open}


@pytest.mark.parametrize('what', [b'\0', ROWS], ids=['zeros', 'rows'])
@pytest.mark.parametrize(
    'packed',
    [pytest.param(p, marks=[pytest.mark.slow] * (p in ('bz2', 'xz'))) for p in (*OPENERS, 'zip')],
)
def test_a_small_file_that_unpacks_to_a_large_one(tmp_path, packed, what):
    block, path = what * (2**20 // len(what)), tmp_path / f't.csv.{packed}'
    if packed == 'zip':
        with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
            archive.writestr('t.csv', block * 33)
    else:
        with OPENERS[packed](path, 'wb') as file:
            for _ in range(33):
                file.write(block)
    with pytest.raises(DataError, match='t.csv.*unpacks to more than'):
        read_table(path)


def test_a_table_that_repeats_itself_may_be_packed(tmp_path):
    with gzip.open(tmp_path / 't.csv.gz', 'wb') as file:
        file.write(b'x,y\n' + b'1,2\n' * 100_000)
    assert len(read_table(tmp_path / 't.csv.gz').frame) == 100_000


def workbook(far):
    book = openpyxl.Workbook()
    book.active['A1'], book.active[far] = 'x', 1
    stream = io.BytesIO()
    book.save(stream)
    return stream.getvalue()


WIDE = {
    't.csv': lambda: ','.join(f'c{k}' for k in range(10**6)) + '\n',
    't.txt': lambda: ','.join(['c'] * 10**6) + '\n',
    't.jsonl': lambda: json.dumps(dict.fromkeys(map(str, range(30_000)))),
    't.arff': lambda: ''.join(f'@attribute c{k} real\n' for k in range(30_000)),
}


@pytest.mark.parametrize('name', WIDE)
def test_too_many_columns(tmp_path, name):
    (tmp_path / name).write_text(WIDE[name]())
    with pytest.raises(DataError, match=f'{name}.* columns, and no more than'):
        read_table(tmp_path / name)


def test_cells_that_are_not_there(tmp_path):
    sparse = '\n'.join(json.dumps({f'c{k}': 1}) for k in range(10_000))
    (tmp_path / 't.jsonl').write_text(sparse)
    with pytest.raises(DataError, match='10,000 × 10,000 cells'):
        read_table(tmp_path / 't.jsonl')
    for far in ('XFD1048576', 'C1048576', 'ZZ20000'):
        (tmp_path / 't.xlsx').write_bytes(workbook(far))
        with pytest.raises(DataError, match='t.xlsx'):
            read_table(tmp_path / 't.xlsx')


def test_a_few_bytes_of_columns_that_hold_millions_of_rows(tmp_path):
    pa = pytest.importorskip('pyarrow')
    from pyarrow import feather, parquet

    table = pa.table({'x': pa.array([0.0]).take(pa.array([0] * 5_000_000))})
    parquet.write_table(table, tmp_path / 't.parquet', compression='zstd')
    feather.write_feather(table, tmp_path / 't.feather', compression='zstd')
    for name in ('t.parquet', 't.feather'):
        with pytest.raises(DataError, match=f'{name} .*too much for a file'):
            read_table(tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize('what', ['zeros', 'rows'])
def test_a_bomb_needs_little_memory(tmp_path, what):
    with gzip.open(tmp_path / 't.csv.gz', 'wb') as file:
        for _ in range(2000):
            file.write(bytes(2**20) if what == 'zeros' else ROWS)
    (tmp_path / 'card.yaml').write_text('table: t.csv.gz\nlabel: y\nsensitive: x\n')
    program = (
        'from moe_expert.datasets import load_dataset\n'
        'from moe_expert.errors import DataError\n'
        f'try: load_dataset({str(tmp_path)!r})\n'
        f'except DataError as e: assert "unpacks" in str(e)\n{PRINT_PEAK}'
    )
    done = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1000  # MiB


# --- names ----------------------------------------------------------------------------------


def test_odd_names_of_groups_and_columns(tmp_path):
    groups = ['all', 'overall', 'difference', 'ratio', 'CON', 'a, b', '"q"', '$x$', '😀']
    rows = [
        {'all': k % 7, 'ratio': k % 5, 'a, "b"': k % 3, '$s$': groups[k % 9], 'CON': k // 9 % 2}
        for k in range(450)
    ]
    (tmp_path / 't.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    card = {'name': 'CON', 'table': 't.jsonl', 'label': 'CON', 'sensitive': '$s$', 'min_group': 3}
    (tmp_path / 'card.json').write_text(json.dumps(card))
    data = load_dataset(tmp_path)
    assert sorted(data.group_names) == sorted(groups)
    assert {'all', 'ratio', 'a, "b"'} <= set(data.feature_names)
    data.sens = (torch.arange(450) % 2).long()
    data.group_names = ['all', 'x']
    mixture = uniform_mixture(init_population([0, 1, 2], data.num_features), data.num_features)
    used = gate_usage(mixture, data, torch.arange(450))
    assert list(used) == ['all', '“all”', 'x']


@pytest.fixture(autouse=True)
def free(tmp_path):
    "Large files are not kept."
    yield
    shutil.rmtree(tmp_path, ignore_errors=True)
