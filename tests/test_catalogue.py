"""The catalogue: shipped cards, their names, their files, and what they make of the real tables.

The oracles read the files with the `csv` module and say themselves who is positive and who is in
which group; nothing of the package's reading is used.
"""

import hashlib
import http.server
import re
import threading
from pathlib import Path

import pytest
import yaml

from moe_expert.cli import listing
from moe_expert.data.cards import check_own_name, make_card, own_name, shipped_card
from moe_expert.data.catalogue import (
    ALIASES,
    DATASETS,
    SHIPPED,
    SHIPPED_FOLDER,
    DataFile,
    is_known,
    is_path,
    known_names,
)
from moe_expert.data.sources import listed_files, places
from moe_expert.datasets import canonical_name, load_dataset
from moe_expert.errors import DataError, DataWarning

ROOT = Path(__file__).resolve().parents[1]
NAMES = (
    'adult bail-new bank communities compas credit-taiwan dutch german-new german-original heart '
    'law nba oulad ricci student'
).split()


@pytest.fixture(scope='module')
def public():
    "Folder of the public tables in their published form; without it a test is skipped."
    found = [
        p for p in (ROOT.parent / 'shared' / 'public', ROOT / 'shared' / 'public') if p.is_dir()
    ]
    if not found:
        pytest.skip('the public tables are missing: put them into ../shared/public')
    return found[0].resolve()


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    "Neither a folder of the user's, nor a cache, nor a network."
    monkeypatch.delenv('MOE_EXPERT_DATA', raising=False)
    monkeypatch.setattr('moe_expert.data.sources.cache_dir', lambda: tmp_path / 'cache')
    monkeypatch.setattr('moe_expert.data.sources._unreachable', lambda url, seconds: 'no network')


# ---- names


def test_every_name_is_there():
    assert list(SHIPPED) == NAMES and not set(SHIPPED) & set(DATASETS)
    assert {p.stem for p in SHIPPED_FOLDER.iterdir()} == set(NAMES)


@pytest.mark.parametrize(
    'name, meant',
    [
        ('adult', 'adult'),
        ('Census', 'adult'),
        ('german_original', 'german-original'),
        ('German New', 'german-new'),
        ('BAIL_NEW', 'bail-new'),
        ('uci-credit', 'credit-taiwan'),
        ('ProPublica', 'compas'),
        ('law school', 'law'),
        ('german_credit', 'german'),
        ('student-math', 'math'),
        ('recidivism', 'bail'),
    ],
)
def test_names(name, meant):
    assert canonical_name(name) == meant and is_known(name) and not is_path(name)


def test_credit_asks():
    for name in ('credit', 'Credit ', 'CREDIT'):
        with pytest.raises(DataError) as error:
            load_dataset(name)
        assert str(error.value) == (
            f'{name}: the German data (german, german-original) or the Taiwanese (credit-taiwan)?'
        )
    assert is_known('credit') and 'credit' not in ALIASES


@pytest.mark.parametrize(
    'wrong, meant', [('adlut', 'adult'), ('comapss', 'compas'), ('germannew', 'german-new')]
)
def test_a_mistyped_name_gets_a_guess(wrong, meant):
    with pytest.raises(DataError, match=f"Did you mean '{meant}'") as error:
        load_dataset(wrong)
    assert all(name in str(error.value) for name in (*NAMES, *DATASETS, 'synthetic'))


def test_known_names_are_not_for_own_data(tmp_path):
    for name in (*NAMES, 'credit', 'Census'):
        with pytest.raises(DataError, match='comes with the package: choose a different name'):
            check_own_name(name)
        with pytest.raises(DataError, match='comes with the package'):
            make_card({'name': name, 'label': 'y', 'sensitive': 's'})
        assert name == 'Census' or name in known_names() or name == 'credit'
    (tmp_path / 'adult.csv').write_text('y,s\n1,0\n')
    assert own_name(tmp_path / 'adult.csv') == 'own-adult'  # a file may be called as it likes


def test_aliases_lead_somewhere():
    assert set(ALIASES.values()) <= {*SHIPPED, *DATASETS}


# ---- cards


@pytest.mark.parametrize('name', NAMES)
def test_a_card_says_where_its_files_come_from(name):
    shipped = shipped_card(name)
    said = yaml.safe_load((SHIPPED_FOLDER / f'{name}.yaml').read_text())
    assert said['name'] == shipped.name == name and shipped.licence and shipped.family
    assert len(shipped.traps) >= 2 and all(t[-1] in '.)' for t in shipped.traps)
    assert len(said['group_names']) == 2 and {'source', 'population', 'outcome'} <= set(
        said['about']
    )
    needed = {f.name for form in (None, *shipped.other_forms) for f in shipped.needed(form)}
    assert needed == set(said['files'])
    for file in shipped.needed():
        assert re.fullmatch('[0-9a-f]{64}', file.sha256) and file.urls
        for url in file.urls:
            pinned = r'https://raw\.githubusercontent\.com/[\w.-]+/[\w.-]+/[0-9a-f]{8,40}/.+'
            assert re.fullmatch(pinned, url) and url.endswith('/' + file.name)


def test_every_choice_has_a_reason():
    "What is dropped, missing or known afterwards has a comment beside or above it."
    for name in NAMES:
        text = (SHIPPED_FOLDER / f'{name}.yaml').read_text()
        for key in ('drop', 'na_values', 'missing', 'privileged'):
            if f'\n{key}:' not in text:
                continue
            block = text.split(f'\n{key}:')[1].split('\n\n')[0]
            before = text.split(f'\n{key}:')[0].split('\n')[-3:]
            assert '#' in block or any('#' in line for line in before), (name, key)


@pytest.mark.parametrize('name', NAMES)
def test_files_are_those_on_record(name, public):
    for file in shipped_card(name).files.values():
        if (
            name == 'compas' and file.urls
        ):  # the published table is not at hand, only the reduced one
            continue
        path = public / file.folder / file.name
        assert path.stat().st_size == file.size
        assert hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256


def test_the_listing_shows_all(public):
    lines = listing(str(public)).splitlines()
    assert [line.split()[0] for line in lines] == ['name', *DATASETS, *NAMES, 'synthetic']
    (adult,) = (line for line in lines if line.startswith('adult'))
    for said in ('48,842', 'income', 'sex: Female / Male', 'CC BY 4.0', 'census', 'adult.data'):
        assert said in adult
    (compas,) = (line for line in lines if line.startswith('compas'))
    assert 'compas_reduced.csv' in compas and 'none stated' in compas


# ---- files


def test_missing_files_are_named(nowhere, tmp_path):
    with pytest.raises(DataError) as error:
        load_dataset('nba', data_dir=tmp_path)
    message = str(error.value)
    for said in (
        f'data_dir: {tmp_path}/nba/nba.csv or {tmp_path}/nba.csv (no such file)',
        '13cdca7627d7779a2396299cdc8edd3a790db7cc/dataset/NBA/nba.csv (no network)',
        'Put nba.csv and nba_relationship.txt into a folder nba/',
        'data_dir= or MOE_EXPERT_DATA',
    ):
        assert said in message
    with pytest.raises(DataError, match='data_dir= and MOE_EXPERT_DATA .not given'):
        load_dataset('ricci')
    with pytest.raises(DataError, match='holds adult/adult.data'):
        load_dataset('adult', data_dir=tmp_path / 'no')
    with pytest.raises(DataError, match='compas-scores-two-years.csv was not found'):
        load_dataset('compas')


@pytest.mark.parametrize('folder', ['ricci', '.'])
def test_files_are_found_in_either_place(folder, public, tmp_path, nowhere, monkeypatch):
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / 'ricci.csv').write_bytes((public / 'ricci' / 'ricci.csv').read_bytes())
    assert load_dataset('ricci', data_dir=tmp_path).num_nodes == 118
    monkeypatch.setenv('MOE_EXPERT_DATA', str(tmp_path))
    assert load_dataset('ricci').num_nodes == 118


def test_families_have_a_folder_of_their_own():
    file = shipped_card('german-new').files['germanA.csv']
    assert [str(p) for p in places(Path('d'), 'german-new', file)] == [
        'd/german_new/germanA.csv',
        'd/german-new/germanA.csv',
        'd/germanA.csv',
    ]


def test_an_edited_file_is_used_with_a_warning(public, tmp_path, nowhere):
    lines = (public / 'ricci' / 'ricci.csv').read_text().splitlines()
    (tmp_path / 'ricci.csv').write_text('\n'.join(lines[:-1]))
    with pytest.warns(DataWarning, match='is not the published ricci.csv .its SHA-256 differs'):
        assert load_dataset('ricci', data_dir=tmp_path).num_nodes == 117


def test_downloads_are_checked_and_kept(tmp_path, monkeypatch):
    monkeypatch.delenv('MOE_EXPERT_DATA', raising=False)
    monkeypatch.setattr('moe_expert.data.sources.cache_dir', lambda: tmp_path / 'cache')
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path / 'served'))

        def log_message(self, *args):
            asked.append(self.path)

    (tmp_path / 'served').mkdir()
    for name in ('a.csv', 'b.txt'):
        (tmp_path / 'served' / name).write_text(name)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root = f'http://127.0.0.1:{server.server_port}'
    sums = {n: hashlib.sha256(n.encode()).hexdigest() for n in ('a.csv', 'b.txt')}
    files = [DataFile(n, s, (f'{root}/no/{n}', f'{root}/{n}')) for n, s in sums.items()]
    found = listed_files('letters', files, None)
    assert {n: p.read_text() for n, p in found.items()} == {'a.csv': 'a.csv', 'b.txt': 'b.txt'}
    n = len(asked)
    assert listed_files('letters', files, None) == found and len(asked) == n  # from the cache
    changed = [DataFile('c.csv', '0' * 64, (f'{root}/a.csv',))]
    with pytest.raises(DataError, match='c.csv was not found'):
        listed_files('letters', changed, None)
    server.shutdown()
    server.server_close()
