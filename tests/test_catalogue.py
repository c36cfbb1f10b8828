"""The catalogue: shipped cards, their names, their files, and what they make of the real tables.

The oracles read the files with the `csv` module and say themselves who is positive and who is in
which group; nothing of the package's reading is used.
"""

import csv
import hashlib
import http.server
import re
import threading
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from moe_expert.cli import listing
from moe_expert.data.audit import audit
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
from moe_expert.mixture import reading
from moe_expert.parameters import check

NAMES = (
    'adult bail-new bank communities compas credit-taiwan dutch german-new german-original heart '
    'law nba oulad ricci student'
).split()
GROUPS = 'adult-sex-race', 'compas-races', 'law-race-sex'  # tables of above, with other groups
ALL = sorted((*NAMES, *GROUPS))


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    "Neither a folder of the user's, nor a cache, nor a network."
    monkeypatch.delenv('MOE_EXPERT_DATA', raising=False)
    monkeypatch.setattr('moe_expert.data.sources.cache_dir', lambda: tmp_path / 'cache')
    monkeypatch.setattr('moe_expert.data.sources._unreachable', lambda url, seconds: 'no network')


# ---- names


def test_every_name_is_there():
    assert list(SHIPPED) == ALL and not set(SHIPPED) & set(DATASETS)
    assert {p.stem for p in SHIPPED_FOLDER.iterdir()} == set(ALL)


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


def test_a_report_repeats_no_column_of_the_card():
    given = check('tune.ipynb', {'dataset': 'ProPublica'})
    dropped = ['decile_score', 'v_decile_score', 'age']
    assert reading._further_columns(given, dropped) == ('age',)


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
    assert [line.split()[0] for line in lines] == ['name', *DATASETS, *ALL, 'synthetic']
    (adult,) = (line for line in lines if line.startswith('adult '))
    for said in ('48,842', 'income', 'sex: Female / Male', 'CC BY 4.0', 'census', 'adult.data'):
        assert said in adult
    (compas,) = (line for line in lines if line.startswith('compas '))
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


# ---- the real tables, against plain readings of the files


@dataclass(frozen=True)
class Truth:
    "What a table says, read with the csv module; who is positive and who is in group 1."

    positive: object  # row (dict of texts) → bool
    privileged: object  # row → bool
    files: tuple[str, ...]  # below the folder of public tables
    left_out: tuple[str, ...]  # columns that are no features, besides the label
    categories: tuple[str, ...] = ()  # columns that are one-hot encoded
    missing: dict | None = None  # column → cells that are not known
    separator: str = ','
    names: tuple[str, ...] = ()  # of the columns, where the file has none
    unlabelled: object = staticmethod(lambda row: False)


def rows_of(truth, public):
    "All people of a table, as dicts of texts."
    people = []
    for name in truth.files:
        lines = (public / name).read_text().splitlines()
        if truth.separator is None:
            cells = [line.split() for line in lines]
        else:
            cells = list(csv.reader(lines, delimiter=truth.separator))
        cells = [[c.strip() for c in row] for row in cells if row]
        names = list(truth.names) or cells[0]
        people += [dict(zip(names, row, strict=True)) for row in cells if row != names]
    return people


UCI_ADULT = (
    'age workclass fnlwgt education education-num marital-status occupation relationship race sex '
    'capital-gain capital-loss hours-per-week native-country income'
).split()
TRUTH = {
    'adult': Truth(
        positive=lambda r: r['income'] == '>50K',
        privileged=lambda r: r['sex'] == 'Male',
        files=('adult/adult.data', 'adult/adult.test'),
        names=tuple(UCI_ADULT),
        left_out=('fnlwgt', 'education-num'),
        categories=(
            'workclass education marital-status occupation relationship race native-country'
        ).split(),
        missing={'workclass': 2799, 'occupation': 2809, 'native-country': 857},
    ),
    'bail-new': Truth(
        positive=lambda r: r['RECID'] == '1',
        privileged=lambda r: r['WHITE'] == '1',
        files=('bail_new/bailA.csv',),
        left_out=('TIME',),
        missing={'PRIORS': 1347},
    ),
    'bank': Truth(
        positive=lambda r: r['y'] == 'yes',
        privileged=lambda r: r['marital'] == 'married',
        files=('bank/bank-full.csv',),
        left_out=('duration',),
        categories='job education default housing loan contact month poutcome'.split(),
        missing={'pdays': 32678},
    ),
    'communities': Truth(
        positive=lambda r: float(r['ViolentCrimesPerPop']) > 0.15,
        privileged=lambda r: float(r['racepctblack']) <= 0.06,
        files=('communities/communities.data',),
        left_out=(  # 84 % of the police survey's columns are missing
            'state county community communityname fold LemasSwornFT LemasSwFTPerPop '
            'LemasSwFTFieldOps LemasSwFTFieldPerPop LemasTotalReq LemasTotReqPerPop '
            'PolicReqPerOffic PolicPerPop RacialMatchCommPol PctPolicWhite PctPolicBlack '
            'PctPolicHisp PctPolicAsian PctPolicMinor OfficAssgnDrugUnits NumKindsDrugSeiz '
            'PolicAveOTWorked PolicCars PolicOperBudg LemasPctPolicOnPatrr LemasGangUnitDeploy '
            'LemasPctOfficDrugUn PolicBudgPerPop'
        ).split(),
        missing={'OtherPerCap': 1},
    ),
    'compas': Truth(
        positive=lambda r: r['two_year_recid'] == '1',
        privileged=lambda r: r['race'] == 'Caucasian',
        files=('compas/compas_reduced.csv',),
        left_out='is_recid event end r_charge_degree decile_score v_decile_score'.split(),
        categories='sex age_cat c_charge_degree'.split(),
        missing={'days_b_screening_arrest': 307},
    ),
    'credit-taiwan': Truth(
        positive=lambda r: r['NoDefaultNextMonth'] == '1',
        privileged=lambda r: r['Age'] == '0',
        files=('credit/credit.csv',),
        left_out=(),
        categories=('EducationLevel',),
    ),
    'dutch': Truth(
        positive=lambda r: r['occupation'] == '1',
        privileged=lambda r: r['sex'] == 'male',
        files=('dutch/dutch.csv',),
        left_out=(),
        categories=(
            'household_position household_size prev_residence_place citizenship country_birth '
            'economic_status cur_eco_activity marital_status'
        ).split(),
    ),
    'german-new': Truth(
        positive=lambda r: r['GoodCustomer'] == '1',
        privileged=lambda r: r['Gender'] == 'Male',
        files=('german_new/germanA.csv',),
        left_out=('PurposeOfLoan', 'OtherLoansAtStore'),
    ),
    'german-original': Truth(
        positive=lambda r: r['risk'] == '1',
        privileged=lambda r: r['sex_and_marital_status'] != 'A92',
        files=('german_original/german.data',),
        separator=None,
        names=(
            'checking_account months credit_history purpose amount savings employed_since '
            'installment_rate sex_and_marital_status other_debtors resident_since property age '
            'other_installments housing credits_at_bank job dependents telephone foreign_worker '
            'risk'
        ).split(),
        left_out=(),
        categories=(
            'checking_account credit_history purpose savings employed_since other_debtors property '
            'other_installments housing job telephone foreign_worker'
        ).split(),
    ),
    'heart': Truth(
        positive=lambda r: r['condition'] == 'D',
        privileged=lambda r: r['sex'] == '1.0',
        files=('heart/processed.cleveland.data',),
        left_out=('diagnosis',),
        categories='cp restecg slope thal'.split(),
        missing={'ca': 4, 'thal': 2},
    ),
    'law': Truth(
        positive=lambda r: r['pass_bar'] == '1.0',
        privileged=lambda r: r['race'] == 'White',
        files=('law/law_school_clean.csv',),
        left_out=(),
        categories=('fulltime',),
    ),
    'nba': Truth(
        positive=lambda r: r['SALARY'] == '1',
        privileged=lambda r: r['country'] == '0',
        files=('nba/nba.csv',),
        left_out=('user_id', 'MPG'),
        unlabelled=lambda r: r['SALARY'] == '-1',
        missing={'player_height': 1, 'player_weight': 1},
    ),
    'oulad': Truth(
        positive=lambda r: r['final_result'] == 'Pass',
        privileged=lambda r: r['gender'] == 'M',
        files=('oulad/oulad_clean.csv',),
        left_out=('id_student',),
        categories=(
            'code_module code_presentation region highest_education imd_band age_band disability'
        ).split(),
    ),
    'ricci': Truth(
        positive=lambda r: float(r['Combine']) >= 70,
        privileged=lambda r: r['Race'] == 'W',
        files=('ricci/ricci.csv',),
        left_out=(),
        categories=('Position',),
    ),
    'student': Truth(
        positive=lambda r: int(r['G3']) >= 10,
        privileged=lambda r: r['sex'] == 'M',
        files=('student/student-mat.csv',),
        separator=';',
        left_out=('G1', 'G2'),
        categories=(
            'school address famsize Pstatus Mjob Fjob reason guardian schoolsup famsup paid '
            'activities nursery higher internet romantic'
        ).split(),
    ),
}


def cell(row, *columns):
    return ' × '.join(row[c] for c in columns)


MALE = {'0.0': 'woman', '1.0': 'man', '0': 'woman', '1': 'man'}
CELLS = {  # of a person, from the file
    'adult-sex-race': lambda row: cell(row, 'sex', 'race'),
    'compas-races': lambda row: row['race'],
    'law-race-sex': lambda row: f'{row["race"]} × {MALE[row["male"]]}',
}


@pytest.mark.slow
@pytest.mark.parametrize('name, like', [*zip(GROUPS, ('adult', 'compas', 'law'))])
def test_the_same_table_with_other_groups(name, like, public, loaded):
    (data, people, _), (same, _, _) = loaded(name, like), loaded(like)
    assert data.name == name and data.y.tolist() == same.y.tolist()
    assert data.num_nodes == shipped_card(name).people and int(data.sens.min()) == 0
    names = [data.group_names[k] for k in data.sens.tolist()]
    assert names == [CELLS[name](r) for r in people]
    assert len(data.group_names) == {'adult': 10, 'compas': 6, 'law': 4}[like]


LARGE = ('adult', 'bank', 'dutch', 'credit-taiwan', 'law', 'oulad', 'bail-new')
TABLES = [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in NAMES]


@pytest.fixture(scope='module')
def loaded(public):
    "Every table, loaded by its name once; and its people as the csv module reads them."
    kept = {}

    def load(name, like=None):
        if name not in kept:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter('always')
                data = load_dataset(name, data_dir=public)
            said = [str(w.message) for w in caught if issubclass(w.category, DataWarning)]
            kept[name] = data, rows_of(TRUTH[like or name], public), said
        return kept[name]

    return load


@pytest.mark.parametrize('name', TABLES)
def test_people_groups_and_outcomes(name, loaded):
    truth, (data, people, _) = TRUTH[name], loaded(name)
    assert data.num_nodes == len(people) == shipped_card(name).people
    assert (data.name, type(data.name), data.edition) == (name, str, 'full')
    y = [-1 if truth.unlabelled(r) else int(truth.positive(r)) for r in people]
    assert data.y.tolist() == y
    assert data.sens.tolist() == [int(truth.privileged(r)) for r in people]
    assert data.group_names == list(shipped_card(name).entries['group_names'])
    member = torch.stack([data.train_mask, data.val_mask, data.test_mask]).sum(0)
    assert torch.equal(member == 1, data.y >= 0) and member.max() == 1
    assert torch.isfinite(data.x).all() and data.x.abs().max() <= 1


@pytest.mark.parametrize('name', TABLES)
def test_columns_are_what_the_card_says(name, loaded):
    truth, (data, people, _) = TRUTH[name], loaded(name)
    report = {c['column']: c for c in data.column_report}
    made = set(report) - set(people[0])  # which file a row comes from
    assert made == ({'part of the split'} if len(truth.files) > 1 else set()) and set(
        people[0]
    ) <= set(report)
    out = {n for n, c in report.items() if c['role'] not in ('label', 'feature', 'group')}
    assert out - made == set(truth.left_out)
    assert all(c['why'] and c['kind'] for c in report.values())
    features = {n: c for n, c in report.items() if c['role'] in ('feature', 'group')}
    shown = {n for n, c in features.items() if c['kind'] == 'category'} - {data.sens_name}
    assert shown == set(truth.categories)
    for n in shown:  # one feature for each value
        values = {r[n] for r in people} - ({'?'} if (truth.missing or {}).get(n) else set())
        made = [f for f in data.feature_names if f.startswith(f'{n}=')]
        assert len(made) == len(values), n
    assert {n: int(gap.sum()) for n, gap in data.gaps.items()} == (truth.missing or {})


@pytest.mark.parametrize('name', TABLES)
def test_the_report_names_traps_and_licence(name, loaded):
    data, _, _ = loaded(name)
    shipped = shipped_card(name)
    assert data.notes['about: licence'] == shipped.licence
    for k, trap in enumerate(shipped.traps, 1):
        assert data.notes[f'about: trap {k}'] == trap


def flags(data):
    return ' | '.join(data.flags)


@pytest.mark.slow
def test_adult_keeps_the_published_test_part(loaded):
    data, people, _ = loaded('adult')
    assert data.test_mask.nonzero().flatten().tolist() == list(range(32561, 48842))
    assert int(data.val_mask.sum()) == pytest.approx(32561 / 4, abs=2)
    assert Counter(r['workclass'] for r in people)['?'] == 2799
    assert 'workclass=?' not in data.feature_names and 'capital-gain: 99999' in flags(data)


@pytest.mark.slow
def test_the_groups_can_be_others(public):
    data = load_dataset(
        'law', data_dir=public, sensitive='male', privileged=1, group_names=['women', 'men']
    )
    assert data.sens_name == 'male' and int(data.sens.sum()) == 11675 and data.name == 'law'
    assert any(f.startswith('race=') for f in data.feature_names)


def test_propublica_s_people(public):
    window = {'days_b_screening_arrest': {'min': -30, 'max': 30}}
    assert load_dataset('compas', data_dir=public, rows=window).num_nodes == 6172
    two = {'race': ['African-American', 'Caucasian']}
    data = load_dataset('compas', data_dir=public, rows=two)
    assert data.num_nodes == 3696 + 2454 and int(data.sens.sum()) == 2454


def found(data, topic):
    "Columns that the audit names under a topic."
    return {c for f in audit(data).findings if f.topic == topic for c in f.columns}


def test_leaks_are_found_once_they_are_let_in(public):
    "What the cards leave out would be flagged: nothing rests on the cards alone."
    compas = load_dataset('compas', data_dir=public, kinds={})
    assert {'is_recid', 'r_charge_degree'} <= found(compas, 'leak')
    heart = load_dataset('heart', data_dir=public, kinds={})
    assert 'diagnosis' in found(heart, 'leak')
    student = load_dataset('student', data_dir=public, kinds={})
    assert 'G2' in found(student, 'leak')
    assert 'G1' in found(student, 'leak') | found(student, 'look')


def test_ricci_s_marks_are_its_outcome(loaded):
    data, _, _ = loaded('ricci')
    assert {'Oral', 'Written'} <= found(data, 'leak')


@pytest.mark.slow
def test_what_stays_in_the_large_tables_is_flagged(loaded):
    bank, _, _ = loaded('bank')
    for column in ('job', 'education', 'contact', 'poutcome'):
        assert f"{column}: 'unknown'" not in flags(bank)  # the card has decided: a trap tells
        assert f'{column}=unknown' in bank.feature_names
    assert any("'unknown' in job" in note for note in bank.notes.values())
    assert 'pdays' in found(bank, 'gaps')  # 82 % are filled in
    adult, _, _ = loaded('adult')
    proxies = audit(adult).proxies['auc']
    assert proxies.idxmax() == 'relationship' and 0.85 < proxies.max() < 0.95  # Husband and Wife


@pytest.mark.slow
def test_students_keep_to_one_part(loaded):
    data, people, _ = loaded('oulad')
    part = data.val_mask.long() + 2 * data.test_mask.long()
    seen = {}
    for row, k in zip(people, part.tolist()):
        assert seen.setdefault(row['id_student'], k) == k
    assert len(seen) == 20316


def test_nba_is_linked_by_id(loaded, public):
    data, people, _ = loaded('nba')
    place = {r['user_id']: k for k, r in enumerate(people)}
    lines = (public / 'nba' / 'nba_relationship.txt').read_text().splitlines()
    pairs = {frozenset(place[v] for v in line.split()) for line in lines}
    assert {frozenset(e) for e in data.edge_index.T.tolist()} == pairs and len(pairs) == 10621


@pytest.mark.parametrize('name', ['german-new', pytest.param('bail-new', marks=pytest.mark.slow)])
def test_sparse_edges_by_row(name, loaded, public):
    data, _, _ = loaded(name)
    file = shipped_card(name).needed()[1]
    raw = np.load(public / file.folder / file.name)
    start, column = raw['indptr'], raw['indices']
    row = np.repeat(np.arange(len(start) - 1), np.diff(start))
    pairs = {(int(a), int(b)) for a, b in zip(row, column) if a < b}
    assert {(a, b) for a, b in data.edge_index.T.tolist() if a < b} == pairs


def test_the_second_header_of_student_is_no_pupil(loaded):
    data, people, said = loaded('student')
    assert len(people) == 395 and any('row 0 repeats the header' in w for w in said)


def test_data_dir_must_be_a_path():
    with pytest.raises(DataError, match='data_dir must be the path of a folder, not 5'):
        load_dataset('heart', data_dir=5)
