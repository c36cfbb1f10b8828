"Data sets: published splits and graphs, the similarity rule, errors, no network, the generator."

import hashlib
import http.server
import json
import random
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import PRINT_PEAK
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from torch_geometric.utils import coalesce, remove_self_loops, to_undirected

from moe_expert.data import sources as data_sources
from moe_expert.data import tables as data_tables
from moe_expert.data.assembly import scale_features
from moe_expert.data.audit import data_card, leakage_audit
from moe_expert.data.catalogue import DATASETS, DatasetSpec
from moe_expert.data.graph import check_edges, similarity_graph, undirected_graph
from moe_expert.data.split import standard_split
from moe_expert.data.synthetic import make_synthetic
from moe_expert.datasets import canonical_name, load_dataset
from moe_expert.errors import (
    ArtifactError,
    DataError,
    DataWarning,
    MoEExpertError,
    OfflineEditionWarning,
)
from moe_expert.mixture import checkpoints
from moe_expert.tune_experts import ExpertTuner
from moe_expert.tuning.folder import claim
from moe_expert.tuning.settings import TuneSettings, settings_record

BENCHMARKS = ('bail', 'german', 'math', 'por')


@pytest.fixture(scope='session')
def facts(data_dir):
    return json.loads((data_dir / 'facts.json').read_text())


@pytest.fixture(scope='session')
def loaded(data_dir):
    "The four benchmarks; any warning of ours would be a failure."
    with warnings.catch_warnings():
        warnings.simplefilter('error', DataWarning)
        return {name: load_dataset(name, data_dir=data_dir) for name in BENCHMARKS}


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    "No folder, an empty cache, and addresses at which nobody listens."
    monkeypatch.delenv('MOE_EXPERT_DATA', raising=False)
    monkeypatch.setattr(data_sources, 'cache_dir', lambda: tmp_path / 'cache')
    for name, spec in DATASETS.items():
        table, edges = (
            replace(f, urls=(f'http://127.0.0.1:9/{f.name}',)) for f in (spec.table, spec.edges)
        )
        monkeypatch.setitem(DATASETS, name, replace(spec, table=table, edges=edges))


def pairs(data):
    return {tuple(e) for e in data.edge_index.T.tolist()}


# ---- the benchmarks as published


@pytest.mark.parametrize('name', BENCHMARKS)
def test_split_equals_the_published_one(name, loaded, facts):
    for part in ('train', 'val', 'test'):
        nodes = loaded[name][f'{part}_mask'].nonzero()[:, 0]
        expected = facts[name]['split'][part]
        assert len(nodes) == expected['n']
        assert int(loaded[name].y[nodes].sum()) == expected['positive']
        assert (
            hashlib.sha256(','.join(map(str, nodes.tolist())).encode()).hexdigest()
            == expected['sha256']
        )


@pytest.mark.parametrize('name', BENCHMARKS)
def test_graph_equals_the_edge_list(name, loaded, facts, data_dir):
    data, n = loaded[name], facts[name]['nodes']
    listed = np.loadtxt(data_dir / name / f'{name}_edges.txt').astype(int)
    both = {(i, j) for a, b in listed.tolist() if a != b for i, j in ((a, b), (b, a))}
    assert data.num_nodes == n and pairs(data) == both
    assert (
        data.num_edges == 2 * facts[name]['undirected_edges']
        and data.num_edges + n == facts[name]['adjacency_nnz_with_self_loops']
    )
    assert data.is_coalesced() and data.is_undirected() and not data.has_self_loops()


@pytest.mark.parametrize('name', ('bail', 'math', 'por'))
def test_rule_rebuilds_the_edge_list(name, loaded, data_dir, tmp_path):
    folder = tmp_path / name  # a table without its edge list: the rule makes the graph
    folder.mkdir()
    (folder / f'{name}.csv').write_bytes((data_dir / name / f'{name}.csv').read_bytes())
    rebuilt = load_dataset(name, data_dir=tmp_path)
    assert torch.equal(rebuilt.edge_index, loaded[name].edge_index)
    assert rebuilt.fingerprint == loaded[name].fingerprint


def test_german_does_not_follow_the_rule(loaded, data_dir, tmp_path):
    with pytest.warns(DataWarning, match='threshold 0.8'):
        fewer = load_dataset('german', data_dir=data_dir, drop=['Age'])
    assert 'Age' not in fewer.feature_names and fewer.num_edges != loaded['german'].num_edges
    (tmp_path / 'german.csv').write_bytes((data_dir / 'german' / 'german.csv').read_bytes())
    with pytest.raises(DataError, match='german_edges.txt.*no rule can rebuild'):
        load_dataset('german', data_dir=tmp_path)


@pytest.mark.parametrize('name', BENCHMARKS)
def test_fields(name, loaded, data_dir):
    data = loaded[name]
    frame = pd.read_csv(data_dir / name / f'{name}.csv')
    spec = DATASETS[name]
    assert data.feature_names == [c for c in frame.columns if c not in (spec.label, *spec.unused)]
    assert data.x.dtype == torch.float32 and data.x.min() == -1 and data.x.max() == 1
    assert (
        data.y.dtype == data.sens.dtype == torch.int64
        and data.edition == 'full'
        and data.name == name
        and data.split_seed == 20
    )
    assert (
        not (data.train_mask & data.val_mask).any() and not (data.val_mask & data.test_mask).any()
    )
    k = data.feature_names.index(spec.sens)
    assert torch.equal(
        data.x[:, k] > 0, data.sens == 1
    )  # the sensitive attribute is a feature, the label is not
    raw = frame[data.feature_names].assign(**{spec.sens: data.sens.numpy()}).to_numpy(float)
    assert np.array_equal(data.x_min, raw.min(0)) and np.array_equal(data.x_max, raw.max(0))
    again, clipped = scale_features(raw, data.x_min.numpy(), data.x_max.numpy())
    assert np.array_equal(again, data.x) and clipped == 0


def test_german_coding(loaded, data_dir):
    frame, data = pd.read_csv(data_dir / 'german' / 'german.csv'), loaded['german']
    assert np.array_equal(data.sens, frame['Gender'] == 'Female') and np.array_equal(
        data.y, frame['GoodCustomer'] == 1
    )
    assert data.group_names == ['male', 'female']


def test_drop_rebuilds_the_graph(loaded, data_dir):
    without = load_dataset('math', data_dir=data_dir, drop=['G2', 'G1'])
    assert len(pairs(without) & pairs(loaded['math'])) // 2 == 502
    assert without.drop == ['G1', 'G2'] and without.fingerprint != loaded['math'].fingerprint
    assert (
        not {'G1', 'G2'} & set(without.feature_names)
        and without.x.shape[1] == loaded['math'].x.shape[1] - 2
    )
    assert (
        without.fingerprint
        == load_dataset('math', data_dir=data_dir, drop=('G1', 'G2')).fingerprint
    )


def test_fingerprints(loaded, data_dir):
    assert len({d.fingerprint for d in loaded.values()}) == 4
    other = load_dataset('math', data_dir=data_dir, split_seed=3)
    assert other.fingerprint == loaded['math'].fingerprint and not torch.equal(
        other.val_mask, loaded['math'].val_mask
    )


def test_known_leaks_are_flagged(loaded):
    flagged = {
        name: leakage_audit(data).query('flagged').index.tolist() for name, data in loaded.items()
    }
    assert flagged == {'bail': ['TIME'], 'german': [], 'math': ['G2'], 'por': ['G2']}
    everyone = {}
    for name, column in (('bail', 'TIME'), ('math', 'G2'), ('por', 'G2')):
        data = loaded[name].clone()
        data.val_mask = torch.ones_like(data.val_mask)
        everyone[name] = leakage_audit(data).loc[column, 'auc']
    assert everyone == pytest.approx({'bail': 0.991, 'math': 0.97, 'por': 0.96}, abs=0.006)


def test_audit_is_sklearns_auc(loaded):
    from sklearn.metrics import roc_auc_score

    data = loaded['german']
    audit, val = leakage_audit(data), data.val_mask
    for k, name in enumerate(data.feature_names):
        auc = roc_auc_score(data.y[val], data.x[val, k])
        assert audit.loc[name, 'auc'] == pytest.approx(max(auc, 1 - auc), abs=1e-12)


def test_data_card(loaded):
    card = data_card(loaded['german'])
    assert (
        card.loc['all', 'nodes'].tolist() == [690, 310]
        and card.loc['all', 'positives'].sum() == 700
    )
    for part in ('train', 'val', 'test'):
        mask = loaded['german'][f'{part}_mask']
        assert card.loc[part, 'nodes'].sum() == int(mask.sum()) and card.loc[
            part, 'share of part'
        ].sum() == pytest.approx(1)
    assert (
        card.attrs['fingerprint'] == loaded['german'].fingerprint
        and card.attrs['undirected_edges'] == 21742
    )


def test_memory_of_the_bail_rebuild(data_dir):
    code = f'''
import pandas as pd
from moe_expert.data.graph import similarity_graph
x = pd.read_csv(r"{data_dir}/bail/bail.csv").drop(columns="RECID").to_numpy(float)
assert similarity_graph(x, 0.6).shape[1] == 2 * 311870
{PRINT_PEAK}'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1000  # MiB; with all pairs at once one matrix alone has 2,720


# ---- the similarity rule


def dense_rule(x, threshold):
    s = 1 / (1 + cdist(x, x))
    np.fill_diagonal(s, 0)
    a = s > threshold * s.max(1, keepdims=True)
    return torch.from_numpy(np.stack(np.nonzero(a | a.T)))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 40),
    st.integers(1, 4),
    st.integers(1, 6),
    st.sampled_from((0.3, 0.5, 0.6, 0.8, 0.95)),
    st.sampled_from((0.0, 1e3, 1e6)),
    st.integers(0, 10**6),
    st.integers(1, 9),
)
def test_rule_on_whole_numbers_with_ties(n, d, levels, threshold, offset, seed, rows):
    x = offset + np.random.default_rng(seed).integers(0, levels, (n, d)).astype(float)
    assert torch.equal(
        similarity_graph(x, threshold, block_bytes=8 * n * rows), dense_rule(x, threshold)
    )


@pytest.mark.parametrize('scale', ([1, 1, 1, 1], [1e6, 1, 1e-3, 1], [1e8, 1e8, 1e-2, 0]))
def test_rule_on_badly_scaled_columns(scale):
    x = np.random.default_rng(0).normal(size=(300, 4)) * scale + np.array([0, 1e5, 0, 3])
    for threshold in (0.4, 0.8):
        assert torch.equal(
            similarity_graph(x, threshold, block_bytes=8 * 300 * 7), dense_rule(x, threshold)
        )


def test_duplicates_are_each_others_nearest():
    x = np.array([[0.0, 0], [0, 0], [3, 4]])  # similarities 1, and 1/6 to the third
    assert similarity_graph(x, 0.5).tolist() == [
        [0, 0, 1, 1, 2, 2],
        [1, 2, 0, 2, 0, 1],
    ]  # the third links to its nearest: both
    assert similarity_graph(torch.from_numpy(x), 0.5).shape == (2, 6)


def test_node_order_does_not_matter():
    rng = np.random.default_rng(4)
    x, order = rng.integers(0, 5, (80, 3)), rng.permutation(80)
    a, b = similarity_graph(x, 0.6), similarity_graph(x[order], 0.6)
    assert {tuple(e) for e in a.T.tolist()} == {(order[i], order[j]) for i, j in b.T.tolist()}


@pytest.mark.parametrize(
    'x, kwargs, message',
    [
        (np.ones((1, 2)), {}, 'two rows'),
        (np.ones(4), {}, 'two rows'),
        (np.full((3, 2), np.inf), {}, 'finite'),
        (np.eye(3), {'threshold': 0}, 'threshold'),
        (np.eye(3), {'threshold': 1}, 'threshold'),
        (np.eye(3), {'method': 'fast'}, 'method'),
    ],
)
def test_rule_refuses(x, kwargs, message):
    with pytest.raises(DataError, match=message):
        similarity_graph(x, **{'threshold': 0.5, **kwargs})


@pytest.mark.slow  # its package compiles itself first
def test_approximate_rule_finds_the_edges():
    x = np.random.default_rng(0).normal(size=(3000, 12))
    exact = {tuple(e) for e in similarity_graph(x, 0.85).T.tolist()}
    found = {
        tuple(e) for e in similarity_graph(x, 0.85, method='approximate', n_neighbors=60).T.tolist()
    }
    assert len(found & exact) / len(exact) > 0.95 and len(found - exact) / len(found) < 0.01


# ---- splitting


def test_split_is_pythons_global_stream_without_touching_it():
    y = np.random.default_rng(0).integers(0, 2, 301)
    random.seed(20)
    zero, one = (np.where(y == c)[0] for c in (0, 1))
    random.shuffle(zero)
    random.shuffle(one)
    expected = [
        np.sort(np.append(zero[a(len(zero))], one[a(len(one))]))
        for a in (
            lambda n: slice(0, min(int(0.5 * n), 50)),
            lambda n: slice(int(0.5 * n), int(0.75 * n)),
            lambda n: slice(int(0.75 * n), n),
        )
    ]
    random.seed(5)
    before = random.getstate()
    assert all(
        np.array_equal(a, b) for a, b in zip(standard_split(torch.from_numpy(y), 100), expected)
    )
    assert random.getstate() == before


# ---- bad tables and edge lists


@pytest.fixture
def frame():
    rng = np.random.default_rng(3)
    return pd.DataFrame(
        {
            'a': rng.normal(size=80),
            'b': rng.integers(0, 9, 80),
            'g': rng.integers(0, 2, 80),
            'y': rng.integers(0, 2, 80),
        }
    )


SPEC = DatasetSpec('toy', 'y', 'g', ('group 0', 'group 1'))


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda f: f.drop(columns='y'), "label 'y' is missing"),
        (lambda f: f.drop(columns='g'), "sensitive attribute 'g' is missing"),
        (
            lambda f: f.assign(y=[2] + [0, 1] * 39 + [0]),
            "label 'y' must hold only 0 .* row 0 holds 2",
        ),
        (lambda f: f.assign(g=['x'] * 80), "sensitive attribute 'g' must hold only"),
        (lambda f: f.assign(y=[np.nan] + [0, 1] * 39 + [0]), "'y'.* row 0 holds nan"),
        (lambda f: f.assign(y=0), "label 'y' is 0 in every row"),
        (lambda f: f.assign(b=f.b.where(f.index != 7)), "column 'b', row 7 holds nan"),
        (lambda f: f.assign(a=f.a.where(f.index != 9, np.inf)), "column 'a', row 9 holds inf"),
        (lambda f: f.assign(b=['low'] * 80), "column 'b', row 0 holds 'low'"),
        (lambda f: pd.concat([f, f[['a']]], axis=1), 'same name'),
    ],
)
def test_bad_tables(frame, change, message):
    with pytest.raises(DataError, match=message):
        data_tables.check_table(change(frame), SPEC, 'toy')


@pytest.mark.parametrize(
    'edges, message',
    [
        ([[0, 1], [1, 80]], 'line 2 .* numbered 0 to 79'),
        ([[-1, 2]], 'line 1'),
        ([[0.5, 2]], 'line 1'),
        ([[0, np.nan]], 'line 1'),
        ([[0, 1, 2]], 'two columns'),
    ],
)
def test_bad_edges(edges, message):
    with pytest.raises(DataError, match=message):
        check_edges(np.array(edges), 80, 'toy')


@pytest.mark.parametrize(
    'drop, message',
    [
        ('y', 'cannot be dropped: it is the label'),
        (['a', 'g'], 'sensitive'),
        (['aa'], "no feature 'aa'. Did you mean 'a'"),
        ('zz', 'Features: a, b, g'),
    ],
)
def test_bad_drops(drop, message):
    with pytest.raises(DataError, match=message):
        data_tables.check_drop(drop, ['a', 'b', 'g'], SPEC)


def test_bad_files(tmp_path, nowhere):
    folder = tmp_path / 'math'
    folder.mkdir()
    (folder / 'math.csv').write_text('')
    with (
        pytest.warns(DataWarning, match='not the published'),
        pytest.raises(DataError, match='math.csv cannot be read'),
    ):
        load_dataset('math', data_dir=tmp_path)
    n = 60
    pd.DataFrame({'sex': [0, 1] * (n // 2), 'G1': range(n), 'G3': [0, 0, 1, 1] * (n // 4)}).to_csv(
        folder / 'math.csv', index=False
    )
    with pytest.warns(DataWarning, match='SHA-256'):
        edited = load_dataset('math', data_dir=tmp_path)
    assert edited.num_nodes == n and edited.edition == 'full'
    for text, message in (
        ('0 60\n', 'math_edges.txt: line 1'),
        ('0 one\n', 'numbers only'),
        ('0 1 2\n', 'two columns'),
        ('', 'cannot be read'),
    ):
        (folder / 'math_edges.txt').write_text(text)
        with pytest.warns(DataWarning), pytest.raises(DataError, match=message):
            load_dataset('math', data_dir=tmp_path)


# ---- names


@pytest.mark.parametrize(
    'name, expected',
    [
        ('bail', 'bail'),
        ('Recidivism', 'bail'),
        ('german_credit', 'german'),
        ('German Credit', 'german'),
        ('student-math', 'math'),
        ('student_por', 'por'),
        ('synthetic', 'synthetic'),
        ('synthetic-500', 'synthetic-500'),
    ],
)
def test_names(name, expected):
    assert canonical_name(name) == expected


@pytest.mark.parametrize(
    'name, message',
    [
        ('bial', "Did you mean 'bail'.*Known: bail, german, math, por"),
        ('germany', "Did you mean 'german'"),
        ('sinthetic', "Did you mean 'synthetic'"),
        ('xyzzy', 'Known'),
        ('', 'Known'),
        ('../bail', 'data_dir='),
        ('/etc/passwd', 'data_dir='),
        ('a\\b', 'data_dir='),
        ('..', 'data_dir='),
        (None, 'not the name'),
        ('synthetic-', 'unknown'),
        ('synthetic--5', 'unknown'),
    ],
)
def test_bad_names(name, message, tmp_path, monkeypatch):
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')  # `..` is a card where that folder happens to hold one
    with pytest.raises(DataError, match=message):
        load_dataset(name)


def test_errors_are_value_errors():
    assert issubclass(DataError, ValueError) and issubclass(DataError, MoEExpertError)


# ---- no network, downloads, the embedded edition


@pytest.mark.parametrize('name', ('german', 'math', 'por'))
def test_nothing_found(name, nowhere, tmp_path):
    start = time.perf_counter()
    with pytest.raises(DataError) as e:
        load_dataset(name)
    assert time.perf_counter() - start < 5
    for part in (
        f'{name}.csv',
        'MOE_EXPERT_DATA (not given)',
        str(tmp_path / 'cache'),
        'http://127.0.0.1:9/',
        'data_dir=',
    ):
        assert part in str(e.value)


def test_full_refuses_the_fall_back(nowhere):
    with pytest.raises(DataError, match='bail.csv.*refuses the embedded edition'):
        load_dataset('bail', edition='full')
    with pytest.raises(DataError, match='no offline edition'):
        load_dataset('math', edition='offline')
    with pytest.raises(DataError, match='edition must be'):
        load_dataset('bail', edition='half')
    with pytest.raises(DataError, match='is not a folder'):
        load_dataset('bail', data_dir='no/such/folder')


def test_fall_back_is_announced(nowhere, caplog):
    with (
        caplog.at_level('INFO', 'moe_expert.data.sources'),
        pytest.warns(OfflineEditionWarning, match='OFFLINE EDITION') as seen,
    ):
        fallen = load_dataset('recidivism')
    assert [w.filename for w in seen if w.category is OfflineEditionWarning] == [__file__]
    assert '127.0.0.1:9' in caplog.text
    asked = load_dataset('bail', edition='offline')
    assert fallen.edition == asked.edition == 'offline' and fallen.fingerprint == asked.fingerprint


def test_offline_edition_facts():
    with warnings.catch_warnings():
        warnings.simplefilter('error', DataWarning)
        data = load_dataset('bail', edition='offline')
    recid = data_sources._offline_bail()
    assert (
        data.num_nodes == 1445
        and int(data.y.sum()) == 552
        and data.label_name == 'RECID'
        and data.sens_name == 'WHITE'
    )
    assert torch.bincount(data.sens).tolist() == [701, 744]  # black, white
    assert (
        not {'durat', 'ldurat', 'cens', 'black', 'RECID'} & set(data.feature_names)
        and len(data.feature_names) == 15
    )
    assert torch.equal(
        data.edge_index, dense_rule(recid.drop(columns='RECID').to_numpy(float), 0.6)
    )
    assert not leakage_audit(data)['flagged'].any()


def test_offline_edition_is_split_50_25_25_without_a_cap():
    "With 100 training labels every expert was a coin toss (AUC 0.53)."
    data, recid = load_dataset('bail', edition='offline'), data_sources._offline_bail()
    rng, expected = random.Random(20), {'train': [], 'val': [], 'test': []}
    for c in (0, 1):  # the rule, written out
        people = np.flatnonzero(recid['RECID'] == c).tolist()
        rng.shuffle(people)
        half, three_quarters = len(people) // 2, 3 * len(people) // 4
        expected['train'] += people[:half]
        expected['val'] += people[half:three_quarters]
        expected['test'] += people[three_quarters:]
    counts = {}
    for part, people in expected.items():
        nodes = data[f'{part}_mask'].nonzero()[:, 0].tolist()
        assert nodes == sorted(people)
        counts[part] = (len(nodes), int(data.y[nodes].sum()))
    assert counts == {'train': (722, 276), 'val': (361, 138), 'test': (362, 138)}
    nodes = ','.join(map(str, sorted(expected['train'])))
    digest = hashlib.sha256(nodes.encode()).hexdigest()
    assert digest == 'fc1519d1f7479c5d26f7595b6e2043fe9678c82d3aced3829e8d09b37bdbfbe5'
    assert DATASETS['bail'].label_number == 100  # the full edition keeps its cap


def test_a_folder_tuned_on_the_capped_split_is_refused(tmp_path):
    data = load_dataset('bail', edition='offline')
    record = settings_record(data, 0, TuneSettings())
    assert record.pop('split_rule') == '50/25/25'  # earlier files do not have it
    claim(tmp_path, 'bail', record)
    with pytest.raises(ArtifactError, match='split_rule: not set there, "50/25/25" asked for'):
        ExpertTuner(data, cache_dir=tmp_path)
    about = {'settings': record, 'backbone': {}}  # of an expert that a mixture would use
    asked = settings_record(data, 0, TuneSettings())
    (wrong,) = checkpoints._mismatches(about, asked, None, None)
    assert wrong == "split_rule is None there, '50/25/25' is asked for"
    assert 'split_rule' not in settings_record(make_synthetic(60), 0, TuneSettings())


def test_hanging_network_is_given_up(nowhere, monkeypatch):
    def hang(*args, **kwargs):  # as a name look-up may
        time.sleep(20)
        raise OSError('gave up')

    monkeypatch.setattr(data_sources.socket, 'create_connection', hang)
    start = time.perf_counter()
    with pytest.raises(DataError, match='no answer within 2 s'):
        load_dataset('math')
    assert time.perf_counter() - start < 5


@pytest.fixture
def server(tmp_path, monkeypatch, nowhere):
    "A web server with a small table as math.csv: the folder it serves, and the paths asked for."
    folder, asked = tmp_path / 'served', []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            asked.append(self.path)

    n = 80
    pd.DataFrame({'sex': [0, 1] * (n // 2), 'G1': range(n), 'G3': [0, 0, 1, 1] * (n // 4)}).to_csv(
        folder / 'math.csv', index=False
    )
    (folder / 'math_edges.txt').write_text('0.0 1.0\n2.0 3.0\n')
    httpd = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    root = f'http://127.0.0.1:{httpd.server_port}'
    files = [
        replace(
            f,
            urls=(f'{root}/missing/{f.name}', f'{root}/{f.name}'),
            also_known=(),
            sha256=hashlib.sha256((folder / f.name).read_bytes()).hexdigest(),
        )
        for f in (DATASETS['math'].table, DATASETS['math'].edges)
    ]
    monkeypatch.setitem(DATASETS, 'math', replace(DATASETS['math'], table=files[0], edges=files[1]))
    yield folder, asked
    httpd.shutdown()
    httpd.server_close()


def test_download_once_then_cache(server, tmp_path):
    folder, asked = server
    data = load_dataset('math', edition='full')
    assert data.num_nodes == 80 and pairs(data) == {(0, 1), (1, 0), (2, 3), (3, 2)}
    assert '/missing/math.csv' in asked  # the first address did not have it, the second did
    n = len(asked)
    assert (
        load_dataset('math').fingerprint == data.fingerprint and len(asked) == n
    )  # from the cache
    (tmp_path / 'cache' / 'math' / 'math.csv').write_text('spoilt')
    assert (
        load_dataset('math').fingerprint == data.fingerprint and len(asked) > n
    )  # not trusted, fetched again


def test_another_content_is_refused(server):
    (server[0] / 'math.csv').write_text('sex,G3\n0,1\n')
    with pytest.raises(DataError, match='math.csv was not found.*'):
        load_dataset('math')


def test_published_addresses_are_pinned():
    for spec in DATASETS.values():
        for file in (spec.table, spec.edges):
            assert len(file.sha256) == 64 and file.urls
            for url in file.urls:
                parts = url.split('/')
                assert (
                    url.startswith('https://raw.githubusercontent.com/')
                    and len(parts[5]) == 40
                    and parts[-1] == file.name
                )


def test_environment_variable(data_dir, loaded, monkeypatch):
    monkeypatch.setenv('MOE_EXPERT_DATA', str(data_dir))
    assert load_dataset('por').fingerprint == loaded['por'].fingerprint
    monkeypatch.setenv(
        'MOE_EXPERT_DATA', str(data_dir / 'por')
    )  # the other layout: the files directly in the folder
    assert load_dataset('por').fingerprint == loaded['por'].fingerprint


# ---- synthetic people


def test_synthetic_is_deterministic():
    np.random.seed(1)
    torch.manual_seed(1)
    before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()
    a, b, c = make_synthetic(seed=3), make_synthetic(seed=3), make_synthetic(seed=4)
    assert (
        torch.equal(a.x, b.x)
        and torch.equal(a.edge_index, b.edge_index)
        and a.fingerprint == b.fingerprint != c.fingerprint
    )
    assert np.array_equal(before, np.random.get_state()[1]) and torch.equal(
        torch_before, torch.get_rng_state()
    )


@pytest.mark.parametrize('n, degree', ((40, 5), (500, 3), (3000, 25)))
def test_synthetic_shape(n, degree):
    data = make_synthetic(n, 22, avg_degree=degree)
    assert (
        data.num_nodes == n
        and data.num_edges == 2 * round(n * degree / 2)
        and data.x.shape == (n, 22)
    )
    assert data.is_coalesced() and data.is_undirected() and not data.has_self_loops()
    binary = [len(torch.unique(column)) == 2 for column in data.x.T]
    assert sum(binary) == 11 and not any(binary[:11])
    assert (
        int(data.train_mask.sum()) in (n // 2, n // 2 - 1)
        and data.edition == 'synthetic'
        and data.feature_names[-1] == data.sens_name
    )


def test_synthetic_bias_is_planted():
    def gap(data, v):
        return (v[data.sens == 1].double().mean() - v[data.sens == 0].double().mean()).item()

    gaps = [gap(d, d.y) for d in (make_synthetic(20000, group_bias=b) for b in (-2, 0, 2))]
    assert gaps[0] < -0.2 and abs(gaps[1]) < 0.03 and gaps[2] > 0.2
    biased, fair = make_synthetic(20000), make_synthetic(20000, proxy_bias=0, noise_gap=0)
    k = biased.feature_names.index('c2')
    assert gap(biased, biased.x[:, k]) > 0.1 and abs(gap(fair, fair.x[:, k])) < 0.02
    auc = [leakage_audit(d)['auc'] for d in (biased, fair)]
    assert auc[0].max() < 0.95 and auc[0]['c0'] > 0.65 and auc[0]['c3'] < 0.55  # informative, noise
    alike = [
        d.sens[d.edge_index].diff(dim=0).eq(0).double().mean()
        for d in (make_synthetic(homophily=h) for h in (0, 0.9))
    ]
    assert alike[0] < 0.55 and alike[1] > 0.65


def test_synthetic_by_name_and_drop():
    data = load_dataset('synthetic-300')
    assert (
        data.num_nodes == 300
        and data.name == 'synthetic-300'
        and load_dataset('synthetic').num_nodes == 2000
    )
    fewer = load_dataset('synthetic-300', drop=['c0'])
    assert (
        'c0' not in fewer.feature_names
        and fewer.fingerprint != data.fingerprint
        and torch.equal(fewer.edge_index, data.edge_index)
    )
    for bad in (
        {'n_nodes': 10},
        {'n_features': 2},
        {'minority': 1},
        {'homophily': 2},
        {'avg_degree': 1000},
    ):
        with pytest.raises(DataError, match='make_synthetic needs'):
            make_synthetic(**bad)


# ---- edges that are handed in


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9).flatmap(
        lambda n: st.tuples(
            st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2), max_size=20)
        )
    )
)
def test_a_list_of_edges_is_the_graph_that_pyg_makes_of_it(drawn):
    n, pairs = drawn
    given_edges = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
    expected = coalesce(remove_self_loops(to_undirected(given_edges, num_nodes=n))[0])
    for edges in (given_edges, given_edges.flip(0), given_edges.numpy(), given_edges.tolist()):
        assert torch.equal(undirected_graph(edges, n), expected)
    assert undirected_graph(expected, n) is expected  # nothing to do: what was cached is kept
    keys = check_edges(given_edges.T, n, 'pairs')
    assert keys.tolist() == [int(i * n + j) for i, j in expected.T if i < j]


@pytest.mark.parametrize(
    'edges, says',
    [
        (torch.zeros(5, 2, dtype=torch.long), r'shape \(5, 2\).*\[2, E\]: transpose it'),
        (torch.zeros(3, 3, dtype=torch.long), r'shape \(3, 3\).*two rows'),
        (torch.zeros(4, dtype=torch.long), r'shape \(4,\)'),
        ([[0, 1], [1]], 'an edge list is an array'),
        (torch.eye(5).to_sparse(), 'matrix of edges is 5 × 5, but the table has 4 rows'),
        (torch.eye(4), r'shape \(4, 4\).*must be sparse'),
        (torch.zeros(2, 3), 'whole numbers.*float32'),
        (np.array([[0.0, 0.5], [1, 1]]), 'whole numbers.*float64'),
        ([['0'], ['1']], 'whole numbers'),
        (np.ones((2, 2), dtype=bool), 'whole numbers.*bool'),
        ([[0, 1], [1, 4]], r'column 1 is \[1, 4\], but the 4 rows .* numbered 0 to 3 \(1 such'),
        ([[-1], [0]], r'column 0 is \[-1, 0\]'),
        (None, 'shape'),
    ],
)
def test_edges_that_are_no_graph(edges, says):
    with pytest.raises(DataError, match=f'friends: edge_index.*(?:{says})'):
        undirected_graph(edges, 4, 'friends: edge_index')


def test_pairs_that_are_no_numbers():
    with pytest.raises(DataError, match='edges: an edge list holds numbers only'):
        check_edges([['a', 'b']], 4, 'edges')


def test_data_come_without_the_compiler_of_torch():
    code = """
import sys
from moe_expert.datasets import load_dataset
load_dataset('synthetic-200')
loaded = {'torch_geometric', 'torch._dynamo', 'sympy'} & set(sys.modules)
import torch
from torch_geometric import is_torch_instance
compiled = torch.compile(torch.nn.Linear(1, 1))  # PyG imports it now, and sees through it
print(loaded, is_torch_instance(compiled, torch.nn.Linear), 'torch._dynamo' in sys.modules)
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.split('\n')[-2] == "{'torch_geometric'} True True"


def test_nothing_looks_for_garbage_while_pyg_is_imported():
    code = """
import gc, sys
from moe_expert.data.assembly import data_class
class Look:
    def find_spec(self, name, path=None, target=None):
        if name == 'torch_geometric.data.data':
            print(gc.isenabled())
            import requests.adapters  # as an optional library of PyG may
sys.meta_path.insert(0, Look())
data_class()
print(gc.isenabled())
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout == 'False\nTrue\n'


@pytest.mark.slow  # Numba compiles first
def test_pagerank_of_pyg_finds_numba_after_our_import():
    pytest.importorskip('numba')
    code = """
import sys
from moe_expert.data.synthetic import make_synthetic
data = make_synthetic(60, 4)
before = 'numba' in sys.modules
from torch_geometric.utils import get_ppr
edges, weights = get_ppr(data.edge_index, num_nodes=60)  # compiled
print(before, edges.shape[1] == len(weights) > 0, 'numba' in sys.modules)
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout == 'False True True\n'


@pytest.mark.parametrize('first', ['', 'import colorsys\n'])  # a module that is loaded stays so
def test_what_is_set_aside_is_imported_on_first_use(first):
    code = f"""
import sys
{first}from moe_expert.data.assembly import set_aside
there = 'colorsys' in sys.modules
with set_aside('colorsys', 'rgb_to_hsv'), set_aside('no_such_module_here', 'f'):
    from colorsys import rgb_to_hsv
    try:
        import no_such_module_here
    except ImportError:
        print('missing')
print(there == ('colorsys' in sys.modules), rgb_to_hsv(1, 0, 0), 'colorsys' in sys.modules)
with set_aside('wave'):
    import wave
    before = sys.modules['wave']
    print(wave.Error.__name__, sys.modules['wave'] is not before)  # used: the real one
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout == 'missing\nTrue (0.0, 1.0, 1) True\nError True\n'
