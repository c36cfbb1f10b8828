"""A pack for an auditor: complete, about nobody, always the same bytes, opened with caution.

What needs a run of its own is slow; the rest uses the files of version 0.1, or a pack of one file.
"""

import json
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import jsonschema
import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from moe_expert import cli
from moe_expert.datasets import load_dataset
from moe_expert.errors import ArtifactError
from moe_expert.mixture import packs
from moe_expert.mixture.gate_training import GateSettings
from moe_expert.mixture.integration import FineTuneSettings
from moe_expert.mixture.packs import MANIFEST, verify_pack
from moe_expert.mixture.verify import audited
from moe_expert.report import filled_cards
from moe_expert.report import pack as packing
from moe_expert.report.pack import kinds_of, pack
from moe_expert.trainer import MoESettings, MoETrainer
from moe_expert.tuning.artifacts import read_json, sha256_file, write_json
from moe_expert.tuning.folder import KINDS, ExpertFiles, misfit
from moe_expert.tuning.schema import ABOUT, kind_schema

SMALL = MoESettings(GateSettings(epochs=20, val_every=20), FineTuneSettings(epochs=10, val_every=5))
OLD = ROOT / 'tests' / 'compat' / 'version_0.1.tar.xz'
CARD = """name: loans
table: loans.csv
label: ok
positive: yes
sensitive: sex
privileged: m
kinds:
  case: id
  remarks: drop
about:
  source: a bank *of ours*
  outcome: Who decided it?
"""


def loans(folder, n=160):
    "A table of people who can be recognised by every value, but for sex and outcome; its card."
    rng = np.random.default_rng(0)
    income = (50_000 + rng.normal(size=n) * 9_000).round(4)
    sex = rng.choice(['f', 'm'], n)
    ok = (income - 50_000) / 9_000 + (sex == 'm') / 2 + rng.normal(size=n) > 0.2
    columns = {
        'case': [f'PERSON{i:05d}' for i in range(n)],
        'remarks': [f'REMARK about {i * 7919}' for i in range(n)],
        'income': income,
        'wealth': (income * 3 + rng.normal(size=n) * 999).round(4),
        'sex': sex,
        'ok': np.where(ok, 'yes', 'no'),
    }
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).to_csv(folder / 'loans.csv', index=False)
    (folder / 'loans.yaml').write_text(CARD)
    return folder / 'loans.yaml'


def report(files, *sources, subject='experts'):
    "A report as it is shipped, not run, with further cells of code."
    door = 'moe.ipynb' if subject == 'mixture' else 'tune.ipynb'
    notebook = nbformat.read(ROOT / 'nbs' / door, as_version=4)
    notebook.cells += [nbformat.v4.new_code_cell(s, id=f'more{i}') for i, s in enumerate(sources)]
    path = files.moe_report() if subject == 'mixture' else files.report(subject)
    nbformat.write(notebook, path)
    return path


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "All stages on own data, and two reports; for copying only."
    folder = tmp_path_factory.mktemp('run')
    card = loans(folder)
    options = dict(settings=SMALL, epochs=100, n_trials=2, device='cpu')
    trainer = MoETrainer(str(card), False, folder / 'cache', **options)
    trainer.run(2)  # its studies stay open, so that there is a log beside the database
    report(trainer.files, 'seed = 3')
    (folder / 'cache' / 'loans.csv').write_bytes((folder / 'loans.csv').read_bytes())
    p = trainer.predict_proba(trainer.data.x)[:, 1].numpy()
    np.save(folder / 'predictions.npy', p)
    return folder


@pytest.fixture(scope='module')
def packed(run):
    "The pack of that run, made with its data; for reading only."
    return pack(run / 'cache', run / 'loans_pack.zip', str(run / 'loans.yaml'))


@pytest.fixture
def folder(packed, tmp_path):
    "The pack, unpacked."
    with zipfile.ZipFile(packed.path) as file:
        file.extractall(tmp_path / 'unpacked')
    return tmp_path / 'unpacked'


@pytest.fixture
def old(tmp_path):
    "The files of version 0.1."
    with tarfile.open(OLD) as archive:
        archive.extractall(tmp_path / 'old', filter='data')
    return tmp_path / 'old'


@pytest.fixture
def mini(tmp_path):
    "The least that is a pack, unpacked; hostile ones are made of it."
    folder = tmp_path / 'mini'
    folder.mkdir()
    (folder / 'README.md').write_text('# A pack\n')
    head = dict(format=packs.PACK, version=1, made_by='0.1.0', datasets={}, left_out={}, checked={})
    about = dict(bytes=9, sha256=sha256_file(folder / 'README.md'), content='text of the pack')
    write_json(folder / MANIFEST, head | dict(files={'README.md': about}))
    return folder


def zipped(folder, path, how=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, 'w', how) as file:
        for source in sorted(folder.rglob('*')):
            file.write(source, source.relative_to(folder))
    return path


def states(found):
    return {f.file: f.state for f in found if f.state != 'verified'}


# --- what is in it --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_pack_holds_pages_records_cards_schemas_and_a_list_of_all(packed, folder):
    names = {p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file()}
    assert names == {*packed.manifest['files'], MANIFEST}
    for name in (
        'README.md',
        'files/index.html',
        'files/loans_experts_tuning_report.ipynb',
        'files/loans_experts_tuning_report.html',
        'files/loans_moe_results.json',
        'files/loans_moe_finetuned.pt',
        'files/loans_studies.db',
        'cards/loans_model_card.md',
        'cards/loans_data_card.md',
        'schemas/test.schema.json',
    ):
        about = packed.manifest['files'][name]
        assert about['sha256'] == sha256_file(folder / name) and about['content'], name
    assert read_json(folder / MANIFEST) == packed.manifest
    assert packed.sha256 == sha256_file(packed.path)


@pytest.mark.slow
def test_every_record_fits_the_schema_that_the_manifest_names(packed, folder):
    listed = packed.manifest['files'] | {MANIFEST: {'schema': 'schemas/manifest.schema.json'}}
    checked = 0
    for name, about in listed.items():
        if name.endswith('.json') and not name.startswith('schemas/'):
            schema = json.loads((folder / about['schema']).read_text())
            jsonschema.Draft202012Validator.check_schema(schema)
            jsonschema.validate(json.loads((folder / name).read_text()), schema)
            checked += 1
    assert checked == 9


def changed(value):
    "The value without each of its entries in turn, and with one of a wrong type."
    for key in value if isinstance(value, dict) else ():
        yield {k: v for k, v in value.items() if k != key}
        for wrong in (None, 'x', 1.5, True, 7, [], {}):
            yield value | {key: wrong}
        if isinstance(value[key], dict):
            for inner in changed(value[key]):
                yield value | {key: inner}


def shortened(value, form):
    "A record with one entry where its form allows any number of alike ones."
    if isinstance(form, list):
        return [shortened(v, form[0]) for v in value[:1]]
    if not isinstance(form, dict):
        return value
    named = {k: shortened(value[k], inner) for k, inner in form.items() if k is not str}
    others = [k for k in value if k not in named][:1] if str in form else []
    return named | {k: shortened(value[k], form[str]) for k in others}


@pytest.mark.parametrize('kind', ABOUT)
def test_the_schema_refuses_what_the_readers_refuse(kind, old):
    "`jsonschema` as an oracle of `misfit`, on damaged records."
    files = ExpertFiles(old, 'synthetic-200')
    path = next(p for p, k in kinds_of(files).items() if k == kind and p.exists())
    schema = jsonschema.Draft202012Validator(kind_schema(kind))
    schema.check_schema(kind_schema(kind))
    record, counts = shortened(read_json(path, unsealed=True), KINDS[kind]), {True: 0, False: 0}
    assert schema.is_valid(record) and misfit(record, KINDS[kind]) is None
    for damaged in changed(record):
        fits = misfit(damaged, KINDS[kind]) is None
        assert schema.is_valid(damaged) == fits, damaged
        counts[fits] += 1
    assert counts[False] > 10 and counts[True] > 0


@pytest.mark.slow
def test_nothing_in_a_pack_is_about_one_person(run, packed):
    "Neither texts nor numbers of the table, as text or as bytes; no prediction; no long lists."
    content = packed.path.read_bytes()
    assert zipfile.ZipFile(packed.path).infolist()[0].compress_type == zipfile.ZIP_STORED
    assert b'PERSON0' not in content and b'REMARK about' not in content
    table = pd.read_csv(run / 'loans.csv')
    p = np.load(run / 'predictions.npy')
    columns = {n: table[n] for n in ('income', 'wealth')} | {'p': p, '1 - p': 1 - p}
    for name, values in columns.items():
        inside = sorted(set(values))[1:-1]  # the ends scale the features, and are in checkpoints
        for value in inside:
            assert str(float(value)).encode() not in content, (name, value)
            for form in '<d', '<f':
                assert struct.pack(form, value) not in content or form == '<f', (name, value)
    assert b'loans.csv' not in b''.join(n.encode() for n in packed.manifest['files'])


@pytest.mark.slow
def test_no_array_in_a_pack_is_as_long_as_a_part_of_the_data(run, packed, folder):
    import torch

    data = load_dataset(str(run / 'loans.yaml'))
    parts = {data.num_nodes, *(int(data[f'{p}_mask'].sum()) for p in ('train', 'val', 'test'))}

    def sizes(value):
        if isinstance(value, torch.Tensor):
            yield from value.shape
        elif isinstance(value, (list, tuple, dict)):
            yield len(value)
            for inner in value.values() if isinstance(value, dict) else value:
                yield from sizes(inner)

    for path in (folder / 'files').iterdir():
        if path.suffix == '.pt':
            assert not parts & set(sizes(torch.load(path, weights_only=True))), path
        elif path.suffix == '.json':
            assert not parts & set(sizes(json.loads(path.read_text()))), path


@pytest.mark.slow
def test_reports_with_other_code_and_files_of_others_stay_out(run, tmp_path):
    cache = shutil.copytree(run / 'cache', tmp_path / 'cache')
    files = ExpertFiles(cache, 'loans')
    report(files, 'table.head()', subject='expert1')
    report(files, 'print(data.x)', subject='mixture')
    files.report('expert1', '.html').write_text('<p>PERSON00001</p>')
    files.report('expert2', '.failed.ipynb').write_text('PERSON00001')
    (cache / 'loans_people.csv').write_text('PERSON00001')
    (cache / 'loans_copy.pt').write_text('PERSON00001')
    made = pack(cache, tmp_path / 'a.zip', str(run / 'loans.yaml'))
    assert set(made.manifest['left_out']) == {files.report('expert1').name, files.moe_report().name}
    assert 'make it again with moe-expert report' in repr(made)
    assert b'PERSON0' not in made.path.read_bytes()
    assert files.moe_report().name in zipfile.ZipFile(made.path).read('README.md').decode()


@pytest.mark.slow
@pytest.mark.parametrize('backbone', ['mlp', 'gcn'])
def test_executed_reports_are_about_nobody(tmp_path, monkeypatch, backbone):
    "From a table to a pack, with the commands; graph networks link people."
    card = loans(tmp_path)
    monkeypatch.chdir(tmp_path)
    few = ['--n_trials', '2', '--epochs', '100', '--cache_dir', 'cache', '--backbone', backbone]
    assert cli.main(['run', str(card), *few, '-q']) == 0
    assert cli.main(['pack', 'cache', '--dataset', str(card)]) == 0
    content = Path('loans_pack.zip').read_bytes()
    assert b'PERSON0' not in content and b'REMARK about' not in content
    names = zipfile.ZipFile('loans_pack.zip').namelist()
    assert sum(n.endswith('report.html') for n in names) == 2
    first = Path('loans_pack.zip').read_bytes()
    assert cli.main(['pack', 'cache', '--dataset', str(card), '--out', 'again.zip']) == 0
    assert Path('again.zip').read_bytes() == first
    assert cli.main(['verify', 'loans_pack.zip', '--dataset', str(card)]) == 0


# --- the same bytes, whole or not at all ----------------------------------------------------


@pytest.mark.slow
def test_the_same_folder_gives_the_same_bytes_wherever_it_lies(run, packed, tmp_path):
    copy = shutil.copytree(run / 'cache', tmp_path / 'elsewhere')
    for path in copy.iterdir():
        os.utime(path, (0, 0))
    again = pack(copy, tmp_path / 'other_name.zip', str(run / 'loans.yaml'))
    assert again.path.read_bytes() == packed.path.read_bytes()


@pytest.mark.slow
def test_a_pack_that_exists_is_only_replaced_where_asked(run, packed, tmp_path):
    out = tmp_path / 'x.zip'
    shutil.copy(packed.path, out)
    assert not pack(run / 'cache', out, str(run / 'loans.yaml')).new
    with pytest.raises(ArtifactError, match='exists and is another pack.*overwrite'):
        pack(run / 'cache', out)  # without the data: other cards
    assert out.read_bytes() == packed.path.read_bytes()
    assert pack(run / 'cache', out, overwrite=True).new
    assert out.read_bytes() != packed.path.read_bytes()


@pytest.mark.slow
def test_after_an_error_there_is_no_zip_and_the_folder_is_as_it_was(run, tmp_path, monkeypatch):
    before = {p.name: p.read_bytes() for p in (run / 'cache').iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(packing, 'write_zip', full)
    with pytest.raises(ArtifactError, match='could not be packed.*No space left'):
        pack(run / 'cache', tmp_path / 'x.zip')
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match='could not be written'):
        pack(run / 'cache', tmp_path / 'nowhere' / 'x.zip')
    assert list(tmp_path.iterdir()) == []
    assert {p.name: p.read_bytes() for p in (run / 'cache').iterdir()} == before


# --- what is refused to be packed -----------------------------------------------------------


@pytest.mark.slow
def test_folders_without_results_and_damaged_ones_are_refused(run, tmp_path):
    with pytest.raises(ArtifactError, match='holds no files of a data set'):
        pack(tmp_path, tmp_path / 'x.zip')
    with pytest.raises(ArtifactError, match='holds no files of bail'):
        pack(run / 'cache', tmp_path / 'x.zip', 'bail')
    for wrong in ('x.txt', 'loans', '.'):
        with pytest.raises(ArtifactError, match='does not end in .zip'):
            pack(run / 'cache', tmp_path / wrong)
    cache = tmp_path / 'cache'
    cache.mkdir()
    shutil.copy(run / 'cache' / 'loans_settings.json', cache)
    with pytest.raises(ArtifactError, match='no results of loans.*moe-expert tune'):
        pack(cache, tmp_path / 'x.zip')
    shutil.rmtree(cache)
    shutil.copytree(run / 'cache', cache)
    expert, gate = (cache / f'loans_{n}_best.pt' for n in ('expert1', 'gate'))
    expert.write_bytes(expert.read_bytes()[:-9])
    gate.write_bytes(gate.read_bytes() + b'x')
    with pytest.raises(ArtifactError, match='files differ') as refusal:
        pack(cache, tmp_path / 'x.zip')
    assert all(p.name in str(refusal.value) for p in (expert, gate))
    assert str(cache) in str(refusal.value) and '/tmp/tmp' not in str(refusal.value)
    assert not (tmp_path / 'x.zip').exists()


@pytest.mark.slow
def test_a_leftover_checkpoint_is_loaded_before_it_is_packed(run, tmp_path):
    cache = shutil.copytree(run / 'cache', tmp_path / 'cache')
    (cache / 'loans_gate_best.0123abcd.pt').write_bytes(b'PERSON00001')
    with pytest.raises(ArtifactError, match='loans_gate_best.0123abcd.pt: differs'):
        pack(cache, tmp_path / 'x.zip')


# --- several data sets, version 0.1 ---------------------------------------------------------


@pytest.mark.slow
def test_a_folder_of_version_0_1(old, tmp_path, monkeypatch, capsys):
    "From a terminal: packed, verified, and named what was changed."
    monkeypatch.chdir(tmp_path)
    assert cli.main(['pack', 'old']) == 0
    out = capsys.readouterr().out
    assert sha256_file('old_pack.zip') in out and 'moe-expert verify old_pack.zip' in out
    assert cli.main(['verify', 'old_pack.zip']) == 0
    assert 'unsealed record of version 0.1' in capsys.readouterr().out
    with zipfile.ZipFile('old_pack.zip') as file:
        file.extractall('unpacked')
    Path('unpacked', 'cards', 'synthetic-200_model_card.md').unlink()
    Path('unpacked', 'README.md').write_text('x')
    assert cli.main(['verify', 'unpacked']) == 1
    assert 'README.md: differs: it is not the file' in capsys.readouterr().out
    with pytest.raises(SystemExit, match='2'):
        cli.main(['verify', 'unpacked', '--write_manifest', 'x'])
    assert not Path('x').exists()


@pytest.mark.slow
def test_two_data_sets(run, old, tmp_path, monkeypatch):
    made = pack(old, tmp_path / 'old.zip')
    for path in (run / 'cache').glob('loans_*'):
        shutil.copy(path, old)
    monkeypatch.chdir(tmp_path)
    both, one = pack(old), pack(old, dataset='synthetic-200')
    assert (str(both.path), str(one.path)) == ('old_pack.zip', 'synthetic-200_pack.zip')
    assert list(both.manifest['datasets']) == ['loans', 'synthetic-200']
    assert one.path.read_bytes() == made.path.read_bytes()
    assert not any('loans' in n for n in one.manifest['files'])
    assert b'loans' not in zipfile.ZipFile(one.path).read('files/index.html')
    found = verify_pack(both.path)
    assert found.exit_code == 2 and 'give their card' in str(found)
    assert verify_pack(both.path, 'synthetic-200').exit_code == 0


# --- verified elsewhere ---------------------------------------------------------------------


@pytest.mark.slow
def test_a_pack_is_accepted_zipped_unpacked_and_zipped_again(run, packed, folder, tmp_path):
    places = [packed.path, folder, zipped(folder, tmp_path / 'again.zip')]
    for place in places:
        found = verify_pack(place, str(run / 'loans.yaml'))
        assert found.exit_code == 0, found
        assert {f.file for f in found} == {*packed.manifest['files']}
    found = verify_pack(folder)
    assert found.exit_code == 2 and not found.of('differs')
    assert 'not computed again' in str(found) and 'data of your own' in str(found)
    assert '/tmp' not in str(found)


@pytest.mark.slow
def test_what_was_changed_added_or_lost_is_named(packed, folder, tmp_path):
    page = folder / 'files' / 'loans_experts_tuning_report.html'
    page.write_text(page.read_text() + ' ')
    (folder / 'cards' / 'loans_model_card.md').unlink()
    (folder / 'files' / 'more.html').write_text('x')
    wanted = {
        'files/loans_experts_tuning_report.html': 'differs',
        'cards/loans_model_card.md': 'differs',
        'files/more.html': 'differs',
    }
    for place in (folder, zipped(folder, tmp_path / 'x.zip')):
        try:
            found = verify_pack(place)
        except ArtifactError as err:  # the page became larger
            assert place.suffix == '.zip' and 'larger than manifest.json says' in str(err)
            page.write_text(page.read_text()[:-9] + 'x' * 8)
            found = verify_pack(zipped(folder, tmp_path / 'y.zip'))
        assert wanted.items() <= states(found).items() and found.exit_code == 1


@pytest.mark.slow
def test_a_pack_without_its_settings_says_so(folder):
    (folder / 'files' / 'loans_settings.json').unlink()
    found = verify_pack(folder)
    assert states(found)['files/loans_settings.json'] == 'differs'
    assert 'files: not checked' in str(found)


def relisted(folder):
    "Write a manifest that fits, as whoever forges a pack can."
    manifest = read_json(folder / MANIFEST)
    for name, about in manifest['files'].items():
        path = folder / name
        about.update(bytes=path.stat().st_size, sha256=sha256_file(path))
    write_json(folder / MANIFEST, manifest)


@pytest.mark.slow
def test_a_forged_score_is_found_with_the_data(run, folder):
    path = folder / 'files' / 'loans_moe_results.json'
    record = read_json(path)
    record['methods']['moe']['utility']['value'] += 0.01
    write_json(path, record)
    relisted(folder)
    found = verify_pack(folder, str(run / 'loans.yaml'))
    assert states(found) == {'files/loans_moe_results.json': 'differs'}
    assert 'methods.moe.utility.value' in str(found)


@pytest.mark.slow
def test_one_damaged_byte_in_the_zip_is_named(packed, tmp_path):
    content = bytearray(packed.path.read_bytes())
    at = content.index(b'# Model card')
    content[at] ^= 1
    path = tmp_path / 'x.zip'
    path.write_bytes(content)
    found = verify_pack(path)
    assert states(found)['cards/loans_model_card.md'] == 'differs' and 'CRC' in str(found)
    path.write_bytes(packed.path.read_bytes()[:-40])
    with pytest.raises(ArtifactError, match='cannot be read as a pack'):
        verify_pack(path)


# --- hostile packs: refused before anything is unpacked -------------------------------------


@pytest.fixture
def nothing_unpacked(monkeypatch, tmp_path):
    "Fails the test if a file appears outside of the temporary mini, or another than a manifest."
    seen = []
    unpack = packs._unpack
    monkeypatch.setattr(packs, '_unpack', lambda f, e, t, m: (seen.append(t), unpack(f, e, t, m)))
    yield
    assert {t.name for t in seen} <= {MANIFEST}
    assert not (tmp_path / 'evil').exists() and not Path('/tmp/evil').exists()


def with_entry(folder, path, name, content=b'x', **attributes):
    "The pack with one more entry."
    zipped(folder, path)
    with zipfile.ZipFile(path, 'a') as file:
        entry = zipfile.ZipInfo('placeholder')
        entry.filename = name
        for key, value in attributes.items():
            setattr(entry, key, value)
        file.writestr(entry, content)
    return path


@pytest.mark.parametrize(
    'name, says',
    [
        ('../evil', 'leads out'),
        ('files/../../evil', 'leads out'),
        ('/tmp/evil', 'absolute'),
        ('C:/evil', 'absolute'),
        ('c:evil', 'absolute'),
        ('..\\evil', 'not every system'),
        ('files//evil', 'leads out'),
        ('./evil', 'leads out'),
        ('a\u202eb', 'not every system'),
        ('a\nb', 'not every system'),
        ('README.md', 'twice'),
        ('readme.MD', 'twice'),
        ('README.md/evil', 'a file and a folder'),
    ],
)
def test_names_that_lead_elsewhere(mini, tmp_path, nothing_unpacked, name, says):
    with pytest.warns(UserWarning) if name == 'README.md' else open(os.devnull):
        path = with_entry(mini, tmp_path / 'x.zip', name)
    with pytest.raises(ArtifactError, match=f'(?s)not unpacked.*{says}'):
        verify_pack(path)


@pytest.mark.parametrize('kind', [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices(mini, tmp_path, nothing_unpacked, kind):
    link = dict(create_system=3, external_attr=(kind | 0o777) << 16)
    path = with_entry(mini, tmp_path / 'x.zip', 'evil', b'/etc/passwd', **link)
    with pytest.raises(ArtifactError, match='a link or a device'):
        verify_pack(path)
    if kind == stat.S_IFLNK:
        (mini / 'evil').symlink_to('/etc/passwd')
    elif kind == stat.S_IFIFO:
        os.mkfifo(mini / 'evil')
    else:
        return
    with pytest.raises(ArtifactError, match='evil is a link or a device'):
        verify_pack(mini)


def test_sizes(mini, tmp_path, nothing_unpacked, monkeypatch):
    "Larger than listed; a bomb; a listed bomb; a manifest that is too large; too many entries."
    readme = mini / 'README.md'
    readme.write_text(readme.read_text() + 'x')
    with pytest.raises(ArtifactError, match="'README.md' is larger than manifest.json says"):
        verify_pack(zipped(mini, tmp_path / 'larger.zip'))
    readme.write_bytes(bytes(2**20))
    bomb = zipped(mini, tmp_path / 'bomb.zip')
    with pytest.raises(ArtifactError, match='would become'):
        verify_pack(bomb)
    relisted(mini)
    with pytest.raises(ArtifactError, match='would become'):
        verify_pack(zipped(mini, tmp_path / 'bomb.zip'))
    monkeypatch.setattr(packs, 'LARGEST_MANIFEST', 100)
    readme.write_text('x')
    with pytest.raises(ArtifactError, match='manifest.json is larger'):
        verify_pack(zipped(mini, tmp_path / 'x.zip'))
    monkeypatch.setattr(packs, 'MOST_ENTRIES', 1)
    with pytest.raises(ArtifactError, match='entries'):
        verify_pack(zipped(mini, tmp_path / 'x.zip'))


@pytest.mark.parametrize('name', ['../evil', '/tmp/evil', 'manifest.json', 'a\\b', ''])
def test_a_manifest_cannot_list_what_no_pack_holds(mini, tmp_path, nothing_unpacked, name):
    manifest = read_json(mini / MANIFEST)
    manifest['files'][name] = manifest['files']['README.md']
    write_json(mini / MANIFEST, manifest)
    for place in (mini, zipped(mini, tmp_path / 'x.zip')):
        with pytest.raises(ArtifactError, match='no pack holds'):
            verify_pack(place)


def test_what_is_no_pack(mini, tmp_path, nothing_unpacked):
    (tmp_path / 'text.zip').write_text('no zip')
    for change, says in (
        (lambda m: m | {'version': 2}, 'newer moe_expert'),
        (lambda m: m | {'format': 'other'}, 'not the manifest of a pack'),
        (lambda m: {k: v for k, v in m.items() if k != 'checked'}, 'lacks checked'),
    ):
        manifest = read_json(mini / MANIFEST)
        write_json(mini / MANIFEST, change(manifest))
        with pytest.raises(ArtifactError, match=says):
            verify_pack(zipped(mini, tmp_path / 'x.zip'))
        write_json(mini / MANIFEST, manifest)
    text = (mini / MANIFEST).read_text()
    (mini / MANIFEST).write_text(text.replace('"bytes": 9', '"bytes": 8', 1))
    with pytest.raises(ArtifactError, match='was changed after it was written'):
        verify_pack(mini)
    (mini / MANIFEST).unlink()
    for place, says in (
        (mini, 'no manifest.json'),
        (zipped(mini, tmp_path / 'y.zip'), 'no manifest.json'),
        (tmp_path / 'text.zip', 'cannot be read as a pack'),
        (tmp_path / 'absent.zip', 'cannot be read as a pack'),
    ):
        with pytest.raises(ArtifactError, match=says):
            verify_pack(place)


def test_encrypted_entries_and_unusual_compression(mini, tmp_path, nothing_unpacked):
    with pytest.raises(ArtifactError, match='compressed in an unusual way'):
        verify_pack(zipped(mini, tmp_path / 'x.zip', zipfile.ZIP_LZMA))
    path = zipped(mini, tmp_path / 'x.zip')
    content = bytearray(path.read_bytes())
    at = content.index(b'PK\x01\x02')
    content[at + 8] |= 1  # the flag of the first entry in the list
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match='encrypted'):
        verify_pack(path)


# --- cards ----------------------------------------------------------------------------------


def headings(text):
    return re.findall(r'^## (.*)$', text, flags=re.M)


@pytest.mark.slow
def test_the_cards_have_the_parts_of_their_templates(folder):
    for what in ('model', 'data'):
        template = (ROOT / 'docs' / f'{what}_card.md').read_text()
        text = (folder / 'cards' / f'loans_{what}_card.md').read_text()
        parts = [h for h in headings(template) if h != 'Facts from the files']
        assert parts and set(parts) <= set(headings(text)), what


@pytest.mark.slow
def test_cards_tell_what_is_known_and_mark_the_rest(run, folder):
    data_card = (folder / 'cards' / 'loans_data_card.md').read_text()
    model_card = (folder / 'cards' / 'loans_model_card.md').read_text()
    assert 'a bank &#42;of ours&#42;' in data_card  # escaped, where it is Markdown
    assert 'Who decided it' not in data_card  # the question of the draft is no answer
    assert '- **people:** 160' in data_card and '| income | feature | number |' in data_card
    record = read_json(folder / 'files' / 'loans_moe_results.json')
    assert f'On the {record["nodes"]} people of the test part' in model_card
    assert record['mixture_sha256'] in model_card
    for row in record['methods'].values():
        assert f'{row["utility"]["value"]:.3f} [' in model_card
    for who in (filled_cards.DECIDES, filled_cards.MADE):
        assert f'**To be filled in by {who}:**' in model_card
    assert filled_cards.HAS_DATA not in data_card
    blind = audited(ExpertFiles(run / 'cache', 'loans'))
    assert filled_cards.data_card_text(blind).count(filled_cards.HAS_DATA) == 6
    assert '**test people:** 40' in filled_cards.data_card_text(blind)


@pytest.mark.slow
def test_links_of_a_pack_lead_somewhere(folder):
    for path in (folder / 'README.md', *(folder / 'cards').iterdir()):
        links = re.findall(r'\]\(([^)\s]+)\)', path.read_text())
        assert links or 'data_card' in path.name
        for link in links:
            assert (path.parent / link).exists(), (path.name, link)


# --- from a terminal ------------------------------------------------------------------------


@pytest.mark.slow
def test_commands(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    card = str(run / 'loans.yaml')
    assert cli.main(['pack', str(run / 'cache'), '--dataset', card]) == 0
    out = capsys.readouterr().out
    assert 'loans_pack.zip' in out and sha256_file('loans_pack.zip') in out
    assert 'moe-expert verify loans_pack.zip' in out
    assert cli.main(['verify', 'loans_pack.zip', '--dataset', card]) == 0
    assert 'verified; ' in capsys.readouterr().out
    assert cli.main(['verify', 'loans_pack.zip']) == 2
    assert 'not everything could be checked' in capsys.readouterr().out
    assert cli.main(['pack', str(run / 'cache')]) == 0 and Path('cache_pack.zip').exists()
    assert cli.main(['pack', str(run / 'cache'), '--out', 'loans_pack.zip']) == 1
    error = capsys.readouterr().err
    assert error.startswith('error: ') and '--overwrite' in error
