"""Graphs: nearest neighbours, the size of the similarity rule's graph, and edges that are given.

Oracles: all pairs in a matrix of distances; the links as pairs of contents, in another order of the
rows; scipy's own reading of a matrix.
"""

import bz2
import gzip
import lzma
import subprocess
import sys
import warnings
import zipfile
from collections import Counter

import numpy as np
import pytest
import scipy.io
import scipy.sparse as sp
import torch
from conftest import PRINT_PEAK

from moe_expert.data.edge_lists import end_text
from moe_expert.data.graph import (
    EdgeList,
    check_edges,
    edge_list,
    edge_tensor,
    kept_keys,
    largest_share,
    nearest_keys,
    nearest_known,
    nearest_recall,
    read_edge_list,
    similarity_keys,
    undirected_graph,
)
from moe_expert.errors import DataError, DataWarning


def degrees(keys, n):
    return np.bincount(np.concatenate([keys // n, keys % n]), minlength=n)


def all_distances(x, y=None):
    y = x if y is None else y
    return np.sqrt(((x[:, None] - y[None]) ** 2).sum(-1))


def contents(x, keys):
    "How often rows of which contents are linked."
    rows = [tuple(row) for row in x]
    return Counter(tuple(sorted((rows[k // len(x)], rows[k % len(x)]))) for k in keys.tolist())


def few_values(n, d, seed):
    "A table full of ties and identical rows; no two columns hold the same values."
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, 2 + c, n) / (1 + c) for c in range(d)], 1) * 2 - 1


# --- Nearest neighbours ------------------------------------------------------------------


@pytest.mark.parametrize('n, d, k', [(300, 5, 10), (200, 1, 3), (150, 40, 7), (60, 2, 1)])
@pytest.mark.parametrize('block', [1, 8 * 300 * 7, 1 << 26])
def test_without_ties_the_graph_is_that_of_all_pairs(n, d, k, block):
    x = np.random.default_rng(n + d).uniform(-1, 1, (n, d))
    distance = all_distances(x)
    np.fill_diagonal(distance, np.inf)
    linked = {
        min(i, j) * n + max(i, j) for i in range(n) for j in np.argsort(distance[i])[:k].tolist()
    }
    assert nearest_keys(x, k, block_bytes=block).tolist() == sorted(linked)


def test_distances_that_differ_by_less_than_the_screening_are_told_apart():
    "Two close pairs far from the centre, where the matrix product has few digits left."
    x = np.array([[1.0], [1 + 2e-9], [1 - 1e-9], [-1], [-1 + 1e-9], [-1 - 3e-9]])
    assert contents(x, nearest_keys(x, 1)) == Counter(
        [
            ((1.0,), (1 + 2e-9,)),
            ((1 - 1e-9,), (1.0,)),
            ((-1.0,), (-1 + 1e-9,)),
            ((-1 - 3e-9,), (-1.0,)),
        ]
    )


@pytest.mark.parametrize('seed', range(6))
def test_with_ties_every_edge_is_one_to_a_nearest_neighbour(seed):
    n, k = 250, 6
    x = few_values(n, 4, seed)
    keys = nearest_keys(x, k)
    distance = all_distances(x)
    np.fill_diagonal(distance, np.inf)
    radius = np.sort(distance, 1)[:, k - 1]
    i, j = np.divmod(keys, n)
    assert (distance[i, j] <= np.maximum(radius[i], radius[j]) + 1e-12).all()
    linked = np.zeros((n, n), dtype=bool)
    linked[i, j] = linked[j, i] = True
    assert linked[distance < radius[:, None] - 1e-12].all()  # nobody who is closer is left out
    assert degrees(keys, n).min() >= k


@pytest.mark.parametrize('seed', range(4))
def test_the_order_of_rows_and_columns_does_not_change_who_is_linked(seed):
    x, rng = few_values(220, 5, seed), np.random.default_rng(seed)
    expected = contents(x, nearest_keys(x, 6))
    rows = rng.permutation(len(x))
    assert contents(x[rows], nearest_keys(x[rows], 6)) == expected
    columns = rng.permutation(5)
    keys = nearest_keys(x[rows][:, columns], 6)
    assert contents(x[rows], keys) == expected


def test_ties_are_drawn_by_lot_and_make_no_hubs():
    "All 12 columns of a category are equally far from each other: the first is nobody's favourite."
    x = np.repeat(np.eye(60), 2, axis=0) * 2 - 1
    degree = degrees(nearest_keys(x, 10), len(x))
    assert degree.min() >= 10 and degree.max() < 40


@pytest.mark.parametrize('m, k', [(50, 10), (12, 10), (11, 10), (50, 3), (4, 3), (9, 1), (30, 5)])
def test_identical_people_form_a_ring(m, k):
    "Two far places with m people each: nobody has more than k (or k + 1) edges."
    keys = nearest_keys(np.repeat([[-1.0], [1.0]], m, axis=0), k)
    degree = degrees(keys, 2 * m)
    assert set(degree) == {k + k % 2 if m > k + k % 2 else m - 1}
    graph = sp.coo_array((np.ones(len(keys)), np.divmod(keys, 2 * m)), shape=(2 * m, 2 * m))
    assert sp.csgraph.connected_components(graph, directed=False)[0] == 2


def test_few_categories_make_a_small_graph_at_once():
    rng = np.random.default_rng(0)
    keys = nearest_keys(rng.integers(0, 2, (50_000, 4)) * 2.0 - 1, 10)
    assert len(keys) == 250_000 and set(degrees(keys, 50_000)) == {10}


def test_those_who_need_others_spread_over_identical_people():
    "90 single people, all nearest to a crowd of 60: each of the crowd is chosen by some of them."
    x = np.vstack([np.zeros((60, 90)), np.eye(90)])
    i, j = np.divmod(nearest_keys(x, 8), len(x))
    chosen = np.bincount(i[(i < 60) & (j >= 60)], minlength=60)
    assert chosen.sum() == 90 * 8 and chosen.min() >= 3 and chosen.max() <= 30


@pytest.mark.parametrize('n, k', [(2, 10), (11, 10), (5, 4)])
def test_few_people_are_all_linked(n, k):
    x = np.random.default_rng(0).normal(size=(n, 2))
    assert degrees(nearest_keys(x, k), n).tolist() == [n - 1] * n


def test_twelve_people_have_all_the_neighbours_there_are():
    "One row twice: a block that is larger than one, and fewer different rows than people."
    x = np.vstack([np.zeros((2, 1)), np.arange(1.0, 11)[:, None]])
    assert degrees(nearest_keys(x, 10), 12).min() >= 10


def test_memory_does_not_grow_with_the_square(tmp_path):
    script = tmp_path / 'large.py'
    script.write_text(
        'import numpy as np\n'
        'from moe_expert.data.graph import nearest_keys\n'
        'x = np.random.default_rng(0).uniform(-1, 1, (9000, 8))\n'
        f'nearest_keys(x[:200], 5)\n{PRINT_PEAK}\nnearest_keys(x, 10)\n{PRINT_PEAK}'
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    before, after = map(float, done.stdout.split())
    assert after - before < 300  # MiB; all pairs at once would be 620


@pytest.mark.parametrize('k', [0, -1, 2.0, True, None])
def test_a_wrong_number_of_neighbours_is_refused(k):
    with pytest.raises(DataError, match='whole number from 1'):
        nearest_keys(np.eye(3), k)


@pytest.mark.parametrize(
    'x, says',
    [
        (np.ones((1, 2)), 'two rows'),
        (np.ones((3, 0)), 'shape'),
        (np.ones(3), 'shape'),
        (np.array([[0.0], [np.nan]]), 'row 1, column 0'),
        (np.array([[0.0], [-1.7e308], [1.7e308]]), 'too large'),
    ],
)
def test_a_table_without_distances_is_refused(x, says):
    with pytest.raises(DataError, match=says):
        nearest_keys(x, 2)


def test_minus_zero_is_zero():
    x = np.array([[0.0], [-0.0], [0.0], [1], [2], [3]])
    assert contents(np.abs(x), nearest_keys(x, 1)) == contents(np.abs(x), nearest_keys(abs(x), 1))


# --- Large tables ------------------------------------------------------------------------


def counted(monkeypatch):
    "How many distances the graph asks for, one number per call."
    import moe_expert.data.graph as graph

    asked, kept = [], graph._distance

    def count(x, i, j, *others):
        asked.append(len(i))
        return kept(x, i, j, *others)

    monkeypatch.setattr(graph, '_distance', count)
    return asked


@pytest.mark.slow
@pytest.mark.parametrize('discrete', [True, False])
def test_the_approximate_graph_is_nearly_the_exact_one_in_every_order(discrete, monkeypatch):
    rng = np.random.default_rng(0)
    x = few_values(3000, 7, 0) if discrete else rng.normal(size=(3000, 30))
    asked = counted(monkeypatch)
    found = nearest_keys(x, 10, exact_up_to=100)
    assert sum(asked) <= len(x) * 51  # ten sought, 40 more, itself; all pairs: 59 times as many
    monkeypatch.undo()
    exact = nearest_keys(x, 10)
    recall = np.isin(exact, found).mean()
    assert recall >= 0.95 and abs(len(found) / len(exact) - 1) < 0.02
    assert nearest_recall(x, 10, found) == pytest.approx(recall, abs=0.02)
    assert np.array_equal(nearest_keys(x, 10, exact_up_to=100), found)
    rows, columns = rng.permutation(len(x)), rng.permutation(x.shape[1])
    again = nearest_keys(x[rows][:, columns], 10, exact_up_to=100)
    assert contents(x[rows], again) == contents(x, found)
    if discrete:  # identical people are a ring, whatever the search
        same = (x[exact // len(x)] == x[exact % len(x)]).all(1)
        assert same.any() and np.isin(exact[same], found).all()


def test_recall_counts_the_links_that_are_there():
    x = np.random.default_rng(0).normal(size=(400, 3))
    keys = nearest_keys(x, 5)
    assert nearest_recall(x, 5, keys) == 1
    assert nearest_recall(x, 5, keys[::2]) == pytest.approx(0.5, abs=0.05)
    assert nearest_recall(np.ones((9, 2)), 2, nearest_keys(np.ones((9, 2)), 2)) == 1


def test_few_exact_distances_follow_the_screening(monkeypatch):
    x = np.random.default_rng(0).normal(size=(3000, 20))
    asked = counted(monkeypatch)
    nearest_keys(x, 10)
    assert sum(asked) < 20 * len(x)


# --- New people --------------------------------------------------------------------------


@pytest.mark.parametrize('known', [few_values(300, 4, 1), few_values(300, 4, 1)[::-1].copy()])
def test_new_people_are_linked_to_the_nearest_and_alone_as_in_a_crowd(known):
    new = np.vstack([few_values(40, 4, 2), np.random.default_rng(0).uniform(-1, 1, (40, 4))])
    found = nearest_known(new, known, 7)
    distance = all_distances(new, known)
    assert np.allclose(np.take_along_axis(distance, found, 1), np.sort(distance, 1)[:, :7])
    assert all(len(set(row)) == 7 for row in found.tolist())
    for i in range(len(new)):
        assert nearest_known(new[i : i + 1], known, 7).tolist() == [found[i].tolist()]
    assert np.array_equal(nearest_known(new, known, 7, block_bytes=8 * 300 * 3), found)


def test_neighbours_of_new_people_do_not_depend_on_the_order_of_the_known():
    new, known = few_values(60, 5, 3), few_values(200, 5, 4)
    order = np.random.default_rng(0).permutation(200)
    a, b = known[nearest_known(new, known, 5)], known[order][nearest_known(new, known[order], 5)]
    for x, y in zip(a.tolist(), b.tolist()):
        assert sorted(x) == sorted(y)


def test_fewer_known_people_than_neighbours():
    assert nearest_known([[0.4]], [[0.0], [1.0]], 10).tolist() == [[0, 1]]


def test_other_columns_are_refused():
    with pytest.raises(DataError, match='3 columns, but the known people have 2'):
        nearest_known(np.ones((1, 3)), np.ones((4, 2)), 1)


# --- The size of the similarity graph, and its columns ------------------------------------


def test_cliques_are_refused_before_they_grow():
    x = np.random.default_rng(0).integers(0, 2, (50_000, 4))
    m = np.unique(x, axis=0, return_counts=True)[1]
    expected = f'{(m * (m - 1) // 2).sum():,} pairs .50,000 people, 4 columns; 16 different rows'
    with pytest.raises(DataError, match=expected):
        similarity_keys(x, 0.9)


def test_a_graph_that_is_too_large_is_refused_and_one_that_just_fits_is_not():
    x = np.random.default_rng(0).normal(size=(400, 20))
    keys = similarity_keys(x, 0.6, max_edges=None)
    assert np.array_equal(similarity_keys(x, 0.6, max_edges=len(keys)), keys)
    for limit in (len(keys) - 1, len(keys) // 10):
        with pytest.raises(DataError, match=rf'400 different rows.*max_edges \({limit:,}\)'):
            similarity_keys(x, 0.6, max_edges=limit, block_bytes=8 * 400 * 20)


def test_the_largest_share_is_that_of_all_pairs():
    x = np.random.default_rng(1).normal(size=(40, 3)) * [1, 5, 2]
    pairs = ((x[:, None] - x[None]) ** 2).sum((0, 1))
    column, share = largest_share(x)
    assert column == 1 and share == pytest.approx(pairs[1] / pairs.sum(), rel=1e-12)
    assert largest_share(np.full((3, 2), 7.0)) == (0, 0.0)
    assert largest_share(np.array([[1.7e308, 0], [-1.7e308, 1]])) == (0, 1.0)


# --- Files of edges ----------------------------------------------------------------------

PAIRS = [(2, 0), (0, 1), (3, 3), (1, 3)]
KEYS = [1, 2, 7]  # among 4 people
TEXTS = {
    'a.txt': '2 0\n0 1\n3 3\n1 3\n',
    'runs.txt': '  2   0\n0\t1 \n3  3\r\n1 3',
    'b.csv': '2,0\n0, 1\n3,3\n1,3\n',
    'c.csv': '2;0\n0;1\n3;3\n1;3\n',
    'd.tsv': '2\t0\n0\t1\n3\t3\n1\t3\n',
    'e.edges': '% comment\n\n# another\n2 0\n0 1\n3 3\n1 3\n',
    'f.csv': 'source,target\n2,0\n0,1\n3,3\n1,3\n',
    'g.csv': '"from","to","weight"\n"2","0",1\n"0","1",1.0\n"3","3",1\n"1","3",1\n',
    'h.csv': ',a,b\n0,2,0\n1,0,1\n2,3,3\n3,1,3\n',
    'i.txt': '2.0 0.0\n0 1\n3.0 3.0\n1 3\n',
    'j.txt': ''.join(f'{a:.18e} {b:.18e}\n' for a, b in PAIRS),
    'k.csv': '\ufeffvon;nach\n2;0\n0;1\n3;3\n1;3\n',
}


@pytest.mark.parametrize('name', TEXTS)
def test_texts_of_edges(tmp_path, name):
    (tmp_path / name).write_text(TEXTS[name], encoding='utf-8', newline='')
    found = read_edge_list(tmp_path / name, 4)
    assert isinstance(found, EdgeList) and found.keys.tolist() == KEYS
    assert found.notes['edges'] == '3' and found.notes['self-loops left out'] == '1'
    assert ('header' in found.notes) == (name[0] in 'fghk')


def test_packed_texts_of_edges(tmp_path):
    text = TEXTS['f.csv'].encode()
    (tmp_path / 'a.csv.gz').write_bytes(gzip.compress(text))
    (tmp_path / 'a.csv.bz2').write_bytes(bz2.compress(text))
    (tmp_path / 'a.csv.xz').write_bytes(lzma.compress(text))
    with zipfile.ZipFile(tmp_path / 'a.csv.zip', 'w') as archive:
        archive.writestr('a.csv', text)
    for path in tmp_path.iterdir():
        assert read_edge_list(path, 4).keys.tolist() == KEYS


def symmetric(n=30, seed=0):
    rng = np.random.default_rng(seed)
    a = np.triu(rng.random((n, n)) < 0.2)
    return (a | a.T).astype(float)


def test_matrices_and_arrays_of_edges(tmp_path):
    dense = symmetric()
    expected = [int(i * 30 + j) for i, j in zip(*np.nonzero(np.triu(dense, 1)))]
    loops = int(np.trace(dense))
    for name in ('csr', 'csc', 'coo', 'bsr', 'dia'):
        sp.save_npz(tmp_path / f'{name}.npz', sp.csr_matrix(dense).asformat(name))
    np.save(tmp_path / 'index.npy', np.array(np.nonzero(dense)))
    np.save(tmp_path / 'pairs.npy', np.argwhere(dense).astype(float))
    np.savez(tmp_path / 'one.npz', edge_index=np.array(np.nonzero(dense)))
    scipy.io.mmwrite(tmp_path / 'sym.mtx', sp.coo_array(dense), symmetry='symmetric')
    scipy.io.mmwrite(tmp_path / 'gen.mtx', sp.coo_array(dense), symmetry='general')
    for path in tmp_path.iterdir():
        found = read_edge_list(path, 30)
        assert found.keys.tolist() == expected, path.name
        assert found.notes['self-loops left out'] == str(loops)


class SparseTensor:
    "As torch_sparse has it."

    def __init__(self, dense):
        self.dense = dense

    def sparse_sizes(self):
        return tuple(self.dense.shape)

    def coo(self):
        return *self.dense.nonzero().unbind(1), None


@pytest.mark.filterwarnings('ignore:Sparse')
def test_sparse_tensors_are_graphs():
    dense = torch.from_numpy(symmetric(12))
    expected = [int(i * 12 + j) for i, j in torch.triu(dense, 1).nonzero()]
    forms = (
        dense.to_sparse(),
        dense.to_sparse_csr(),
        dense.to_sparse_csc(),
        dense.bool().to_sparse(),
        SparseTensor(dense),
        sp.csr_array(dense.numpy()),
        sp.lil_matrix(dense.numpy()),
    )
    for matrix in forms:
        assert edge_list(matrix, 12).keys.tolist() == expected
        assert check_edges(matrix, 12, 'toy', index=True).tolist() == expected
    assert undirected_graph(dense.to_sparse(), 12).shape == (2, 2 * len(expected))
    whole = dense.long().to_sparse()
    assert torch.equal(undirected_graph(whole, 12), edge_tensor(np.array(expected), 12))


def test_adj_t_of_pyg_with_repeated_edges():
    from torch_geometric.data import Data
    from torch_geometric.transforms import ToSparseTensor

    index = torch.tensor([[0, 1, 1, 0, 2], [1, 0, 0, 1, 2]])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for layout in (torch.sparse_coo, torch.sparse_csr):
            graph = ToSparseTensor(layout=layout)(Data(edge_index=index, num_nodes=4))
            assert check_edges(graph.adj_t, 4, 'adj_t').tolist() == [1]


def save(folder, text, name='friends.txt'):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    'text, says',
    [
        ('0 1\n1 4\n', 'line 2 is 1, 4, but the 4 rows .* numbered 0 to 3 .1 such'),
        ('# x\n\n0 1\n1 -1\n', 'line 4 is 1, -1'),
        ('0 1\n1 1.5\n', 'line 2 is 1, 1.5'),
        ('0 1\n1 01\n', 'line 2 is 1, 01'),
        ('0 1\n1 nan\n', 'line 2 is 1, nan'),
        ('1 2\n3 4\n', 'run from 1 to 4: subtract 1'),
        ('0 anna\n1 2\n', 'line 1 is 0, anna'),
        ('anna bo\nbo jo\n', 'edges_by: COLUMN'),
        ('0,1,0.5\n1,2,0.7\n', r'column 3 has 2 different values .*leave out the column'),
        ('a b w\n0 1 5\n1 2 6\n', r'column 3 .w. has 2'),
        ('0,1;2\n1,2;3\n', 'comma or semicolon: write it with one separator'),
        ('0 1\n2\n', 'line 2 is .2., 1 cells, where most have 2'),
        ('0 1 1\n2 1\n', 'line 2 is .2 1., 2 cells, where most have 3'),
        ('0|1\n1|2\n', 'line 1 is .0.1., which is not two ends'),
        ('0,1\n"1,2\n', 'check the quotes'),
        ('', 'holds no edges'),
        ('# only this\n', 'holds no edges'),
        (b'0 1\n\xff\xfe 2\n', 'is not UTF-8'),
    ],
)
def test_texts_that_are_refused(tmp_path, text, says):
    with pytest.raises(DataError, match=f'friends.txt.*(?:{says})'):
        read_edge_list(save(tmp_path, text), 4)


def test_files_that_are_refused(tmp_path):
    np.savez(tmp_path / 'two.npz', a=np.ones(2), b=np.ones(2))
    np.save(tmp_path / 'square.npy', np.array([[0, 1], [2, 3]]))
    np.save(tmp_path / 'pickle.npy', np.array([[0, None]], dtype=object), allow_pickle=True)
    np.save(tmp_path / 'dense.npy', symmetric())
    sp.save_npz(tmp_path / 'other.npz', sp.eye_array(5, format='csr'))
    sp.save_npz(tmp_path / 'weights.npz', sp.csr_array(symmetric(4) * np.arange(4)[:, None]))
    sp.save_npz(tmp_path / 'directed.npz', sp.csr_array(np.triu(np.ones((4, 4)))))
    save(tmp_path, b'no archive', 'broken.txt.gz')
    save(tmp_path, b'no archive', 'broken.npz')
    save(tmp_path, '0 1\n', 'friends.doc')
    says = {
        'two.npz': 'arrays a, b',
        'square.npy': '2 × 2 may hold two edges in rows or in columns',
        'pickle.npy': 'cannot be read',
        'dense.npy': 'must be sparse',
        'other.npz': '5 × 5, but the table has 4 rows',
        'weights.npz': 'weights are not used',
        'directed.npz': 'not symmetric: 6 of its 6 entries.*`directed: both`',
        'broken.txt.gz': 'cannot be read',
        'broken.npz': 'cannot be read',
        'friends.doc': 'edges are read from',
        'missing.txt': 'no such file',
    }
    for name, message in says.items():
        with pytest.raises(DataError, match=message) as caught:
            read_edge_list(tmp_path / name, 4)
        assert str(caught.value).count(name) == 1 and '\n' not in str(caught.value)
    both = read_edge_list(tmp_path / 'directed.npz', 4, directed='both')
    assert len(both.keys) == 6 and both.notes['in one direction only'] == '6'


# --- Whom the ends name ------------------------------------------------------------------


@pytest.mark.parametrize(
    'ids, text',
    [
        ([30, 10, 20, 40], '20 30\n30 10\n10 40\n'),
        ([30.0, 10.0, 20.0, 40.0], '20.0 30\n30 10.\n10 4e1\n'),
        (['c', 'a', 'b', 'd'], 'from to\nb c\nc a\na d\n'),
        (['007', '7', '08', None], '08 007\n007 7\n'),
        (['725731259612196864', '725731259612196865', '3', '4'],
         '3 725731259612196864\n725731259612196864 725731259612196865\n'),
    ],
)  # fmt: skip
def test_edges_by_id(tmp_path, ids, text):
    keys = read_edge_list(save(tmp_path, text), 4, ids=ids).keys
    assert keys.tolist()[:2] == [1, 2]


def test_ids_that_do_not_fit(tmp_path):
    path = save(tmp_path, '# a list\nanna bo\nbo zoe\nzoe mo\n')
    with pytest.raises(DataError, match=r'line 3 names zoe.*\(2 such edges, 2 such ids\)'):
        read_edge_list(path, 3, ids=['anna', 'bo', 'jo'])
    with pytest.raises(DataError, match='the id bo is that of the rows 1 and 2'):
        read_edge_list(path, 3, ids=['anna', 'bo', 'bo'])
    with pytest.raises(DataError, match='2 ids, but 3 rows'):
        read_edge_list(path, 3, ids=['anna', 'bo'])
    with pytest.raises(DataError, match='leave out edges_by'):
        edge_list(sp.eye_array(3), 3, ids=['anna', 'bo', 'jo'])
    # a first line of two strangers is an edge, not a header
    with pytest.raises(DataError, match='line 1 names zoe'):
        read_edge_list(save(tmp_path, 'zoe mo\nanna bo\n'), 3, ids=['anna', 'bo', 'jo'])


def test_a_column_that_holds_all_ends_is_proposed_or_asked_for(tmp_path):
    age = ['20', '20', '31', '40']
    large = save(tmp_path, '11 12\n12 14\n')
    columns = {'pid': ['14', '13', '12', '11'], 'other': ['1', '2', '3', '4'], 'age': age}
    with pytest.raises(DataError, match='line 1 is 11, 12.*values of pid: `edges_by: pid`$'):
        read_edge_list(large, 4, candidates=columns)
    with pytest.raises(DataError, match='edges_by: COLUMN'):
        read_edge_list(large, 4, candidates={'age': age})

    small = save(tmp_path, '1 2\n2 3\n', 'small.txt')  # rows of the table, or ids
    for ids in (['3', '0', '1', '2'], [1, 2, 3, 4], [1.0, 2.0, 3.0, np.nan]):
        with pytest.raises(DataError, match='`edges_by: pid` if .*`edges_by: row` if'):
            read_edge_list(small, 4, candidates={'pid': ids, 'age': age})
    assert read_edge_list(small, 4).keys.tolist() == [6, 11]  # the card says `row`
    for ids in (range(4), [5, 6, 7, 8], ['1', '2', '2', '3'], ['x', 1, 2, 3.0]):
        assert len(read_edge_list(small, 4, candidates={'pid': ids}).keys) == 2


def test_texts_of_ends():
    for text in ('12', 12, 12.0, '12.', ' 12.00 ', '+12', np.int64(12), np.float32(12), '1.2E1'):
        assert end_text(text) == '12'
    for text in ('012', '12.5', 'a12', '1 2', '12e400', '0x12', 'inf'):
        assert end_text(text) == text


# --- Directions --------------------------------------------------------------------------


@pytest.mark.parametrize(
    'text', ['0 1\n1 2\n3 0\n', '0 1\n1 0\n1 2\n2 1\n', '0 1\n0 1\n1 2\n2 2\n']
)
def test_lists_without_directions_are_quiet(tmp_path, text):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        read_edge_list(save(tmp_path, text), 4)


def test_lists_with_directions_warn_unless_both_are_meant(tmp_path):
    path = save(tmp_path, '0 1\n1 0\n1 2\n2 3\n3 3\n')
    with pytest.warns(DataWarning, match='1 edges stand in both directions and 2 in one only'):
        found = read_edge_list(path, 4)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        both = read_edge_list(path, 4, directed='both')
        check_edges([[0, 1], [1, 0], [1, 2]], 4, 'toy')  # programs have their own ways
        undirected_graph([[0, 1, 1], [1, 0, 2]], 4)
    assert both.keys.tolist() == found.keys.tolist() == [1, 6, 11]
    with pytest.raises(DataError, match="directed must be 'both'"):
        read_edge_list(path, 4, directed='yes')


@pytest.mark.parametrize(
    'edges, index, says',
    [
        (np.zeros((2, 5), int), False, 'transpose it'),
        (np.zeros((5, 2), int), True, 'transpose it'),
        (np.eye(4), False, 'must be sparse'),
        (np.eye(4), True, 'must be sparse'),
        ([[True, False]], False, 'not True and False'),
        (torch.eye(4)[:3].to_sparse(), True, '3 × 4, but the table has 4 rows'),
        (torch.ones(4, 4, 4).to_sparse(), True, '4 × 4, not of shape'),
    ],
)
def test_edges_of_the_wrong_form(edges, index, says):
    for read in (check_edges, edge_list):
        with pytest.raises(DataError, match=f'toy.*{says}'):
            read(edges, 4, 'toy', index=index)


def test_no_edges_are_a_graph():
    for edges, index in (([], False), ([[], []], True), (np.empty((0, 2)), False)):
        assert check_edges(edges, 3, 'toy', index=index).size == 0
        assert edge_list(edges, 3, index=index).keys.size == 0


def test_edges_among_the_kept_rows():
    rng = np.random.default_rng(0)
    dense = symmetric(20) * (1 - np.eye(20))
    rows = np.sort(rng.choice(20, 11, replace=False))
    keys = kept_keys(edge_list(sp.csr_array(dense), 20).keys, 20, rows)
    assert keys.tolist() == edge_list(sp.csr_array(dense[np.ix_(rows, rows)]), 11).keys.tolist()


def test_scipy_is_imported_for_matrices_alone(tmp_path):
    text, matrix = tmp_path / 'edges.txt', tmp_path / 'edges.mtx'
    text.write_text('0 1\n1 2\n')
    scipy.io.mmwrite(matrix, sp.coo_array(([1, 1], ([0, 1], [1, 0])), shape=(3, 3)))
    code = """
import sys
from moe_expert.data.edge_lists import is_matrix, read_ends
print(is_matrix([[0, 1]]), len(read_ends(sys.argv[1], 3).ends), 'scipy' in sys.modules)
print(len(read_ends(sys.argv[2], 3).ends), 'scipy' in sys.modules)
"""
    command = [sys.executable, '-c', code, str(text), str(matrix)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.split('\n')[:2] == ['False 2 False', '2 True'], done.stderr
