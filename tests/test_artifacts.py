"""Files survive kills, full disks and rubbish; nothing foreign is executed; two settings never
share a data set's files."""

import errno
import json
import math
import multiprocessing
import os
import pickle
import re
import resource
import stat
import sys
import tempfile
import time
import zipfile
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moe_expert.data import files as data_files
from moe_expert.errors import ArtifactError
from moe_expert.experts.specs import EXPERTS
from moe_expert.tuning import artifacts as tuning_artifacts
from moe_expert.tuning import folder as tuning_folder
from moe_expert.tuning.folder import ExpertFiles

SETTINGS = {
    'seed': 0,
    'split_seed': 20,
    'edition': 'full',
    'drop': [],
    'backbone': 'mlp',
    'fingerprint': 'ab12',
}
PAYLOAD = {
    'state_dict': {'w': torch.arange(6.0).reshape(2, 3), 'b': torch.zeros(2)},
    'best_score': 0.5,
    'names': ['a', 'ü'],
    'none': None,
}
fs = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def same(a, b):
    "Equal, tensors included."
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


# processes of their own, forked from one that has imported everything: each starts in milliseconds
processes = multiprocessing.get_context('forkserver')
processes.set_forkserver_preload(['moe_expert.tuning.folder', 'test_artifacts'])


def names(folder):
    return sorted(p.name for p in Path(folder).iterdir() if p.suffix != '.lock')


# ---- whole or not at all -------------------------------------------------------------------------


def fail_with(number):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    'call, number',
    list(product(['fsync', 'replace'], [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])),
)
@pytest.mark.parametrize(
    'write, content',
    [(tuning_artifacts.write_json, {'new': 1}), (tuning_artifacts.save_checkpoint, PAYLOAD)],
    ids=['json', 'checkpoint'],
)
def test_a_failing_disk_leaves_the_old_file(tmp_path, monkeypatch, call, number, write, content):
    path = tmp_path / 'file'
    path.write_bytes(b'old')
    monkeypatch.setattr(os, call, fail_with(number))
    with pytest.raises(
        ArtifactError, match=re.escape(f'{path} could not be written: {os.strerror(number)}')
    ) as failure:
        write(path, content)
    assert isinstance(failure.value.__cause__, OSError)
    assert path.read_bytes() == b'old' and names(tmp_path) == ['file']


def test_order_of_the_steps(tmp_path, monkeypatch):
    """Content to the disk, then the name, then the folder.

    Any other order can lose both files in a power cut.
    """
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(
        os,
        'fsync',
        lambda fd: (
            done.append('folder' if stat.S_ISDIR(os.fstat(fd).st_mode) else 'content'),
            fsync(fd),
        ),
    )
    monkeypatch.setattr(os, 'replace', lambda a, b: (done.append('name'), replace(a, b))[1])
    data_files.write_bytes(tmp_path / 'a', b'x')
    assert done == ['content', 'name', 'folder']


def write_limited(folder, answers):
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    for write, name, content in (
        (tuning_artifacts.write_json, 'r.json', {'text': 'x' * 50_000}),
        (tuning_artifacts.save_checkpoint, 'c.pt', {'w': torch.rand(50_000)}),
    ):
        try:
            write(folder / name, content)
        except ArtifactError as err:
            answers.put(str(err))


@pytest.mark.slow
def test_file_size_limit_leaves_the_old_files(tmp_path):
    tuning_artifacts.write_json(tmp_path / 'r.json', {'old': True})
    tuning_artifacts.save_checkpoint(tmp_path / 'c.pt', PAYLOAD)
    answers = processes.Queue()
    writer = processes.Process(target=write_limited, args=(tmp_path, answers))
    writer.start()
    for name in ('r.json', 'c.pt'):
        assert f'{tmp_path / name} could not be written: File too large' in answers.get(timeout=60)
    writer.join()
    assert tuning_artifacts.read_json(tmp_path / 'r.json')['old'] is True and same(
        tuning_artifacts.load_checkpoint(tmp_path / 'c.pt'), PAYLOAD
    )
    assert names(tmp_path) == ['c.pt', 'r.json']


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full here')
def test_full_device(tmp_path, monkeypatch):
    "The operating system itself says no, at the first flush."
    import builtins

    real = builtins.open
    monkeypatch.setattr(
        data_files,
        'open',
        lambda path, mode='r', *a, **k: (
            real('/dev/full', 'wb') if mode == 'xb' else real(path, mode, *a, **k)
        ),
        raising=False,
    )
    (tmp_path / 'f').write_text('old')
    with pytest.raises(ArtifactError, match='No space left on device'):
        data_files.write_bytes(tmp_path / 'f', b'x' * 100_000)
    assert (tmp_path / 'f').read_text() == 'old'


def test_an_error_in_the_block_passes_through(tmp_path):
    with pytest.raises(ZeroDivisionError), data_files.atomic_write(tmp_path / 'a') as file:
        file.write(b'half')
        _ = 1 / 0
    assert names(tmp_path) == []


def test_a_folder_where_the_file_should_be(tmp_path):
    (tmp_path / 'a.json').mkdir()
    with pytest.raises(ArtifactError, match='could not be written'):
        tuning_artifacts.write_json(tmp_path / 'a.json', {})
    assert names(tmp_path) == ['a.json']


def write_many(path, letter, times):
    for i in range(times):
        tuning_artifacts.write_json(
            path, {'by': letter, 'i': i, 'text': letter * (20_000 if letter == 'a' else 70_000)}
        )
        tuning_artifacts.save_checkpoint(
            f'{path}.pt',
            {
                'by': letter,
                'w': torch.full((5_000 if letter == 'a' else 9_000,), float(ord(letter))),
            },
        )


def test_concurrent_writers_never_mix(tmp_path):
    path = str(tmp_path / 'r.json')
    writers = [processes.Process(target=write_many, args=(path, letter, 60)) for letter in 'ab']
    for w in writers:
        w.start()
    seen = set()
    while any(w.is_alive() for w in writers) or not seen:
        if not os.path.exists(path + '.pt'):
            continue
        record, checkpoint = (
            tuning_artifacts.read_json(path),
            tuning_artifacts.load_checkpoint(path + '.pt'),
        )
        assert (
            set(record['text']) == {record['by']}
            and len(record['text']) == {'a': 20_000, 'b': 70_000}[record['by']]
        )
        assert (checkpoint['w'] == ord(checkpoint['by'])).all() and len(checkpoint['w']) == {
            'a': 5_000,
            'b': 9_000,
        }[checkpoint['by']]
        seen.add(record['by'])
    for w in writers:
        w.join()
    assert [w.exitcode for w in writers] == [0, 0]
    assert names(tmp_path) == ['r.json', 'r.json.pt']


def write_endlessly(folder, ready):
    for i in range(10**9):
        tuning_artifacts.write_json(f'{folder}/r.json', {'i': i, 'text': str(i % 10) * 30_000})
        tuning_artifacts.save_checkpoint(
            f'{folder}/c.pt', {'i': i, 'w': torch.full((9_000,), float(i))}
        )
        ready.set()


@pytest.mark.slow
def test_kill_9_leaves_whole_files(tmp_path):
    rng, last = np.random.default_rng(0), -1
    for _ in range(20):
        ready = processes.Event()
        writer = processes.Process(target=write_endlessly, args=(tmp_path, ready))
        writer.start()
        assert ready.wait(60)
        time.sleep(rng.uniform(0, 0.1))
        writer.kill()
        writer.join()
        record, checkpoint = (
            tuning_artifacts.read_json(tmp_path / 'r.json'),
            tuning_artifacts.load_checkpoint(tmp_path / 'c.pt'),
        )
        assert (
            record['text'] == str(record['i'] % 10) * 30_000
            and (checkpoint['w'] == checkpoint['i']).all()
        )
        last = max(last, record['i'])
    data_files.sweep(tmp_path, older_than=-1)
    assert names(tmp_path) == ['c.pt', 'r.json'] and last > 0


def test_sweep_leaves_young_and_foreign_files(tmp_path):
    old, young, foreign = (
        tmp_path / f'.a.{"1" * 32}.tmp',
        tmp_path / f'.a.{"2" * 32}.tmp',
        tmp_path / '.mine.tmp',
    )
    for p in (old, young, foreign):
        p.touch()
    for p in (old, foreign):
        os.utime(p, (0, 0))
    assert data_files.sweep(tmp_path) == [old] and names(tmp_path) == sorted(
        [young.name, foreign.name]
    )


# ---- strict JSON ---------------------------------------------------------------------------------

text = st.text(st.characters(exclude_categories=['Cs']), max_size=10)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | text
)
nested = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=12,
)
records = st.dictionaries(text, nested)


@fs
@given(record=records)
def test_json_round_trip_is_exact(tmp_path, record):
    written = tuning_artifacts.write_json(tmp_path / 'r.json', record)
    read = tuning_artifacts.read_json(tmp_path / 'r.json')
    assert same(read, written)
    assert same({k: v for k, v in read.items() if k != tuning_artifacts.SEAL}, record)


UNFIT = [
    math.nan,
    math.inf,
    -math.inf,
    np.float64(1),
    np.float32(1),
    np.int64(1),
    np.bool_(True),
    np.str_('a'),
    np.zeros(1),
    torch.tensor(1.0),
    (1, 2),
    {1, 2},
    b'bytes',
    Path('x'),
    1j,
    object,
    '\ud800',
    {1: 2},
    {None: 1},
    {np.str_('a'): 1},
    print,
]


@pytest.mark.parametrize('bad', UNFIT, ids=repr)
@pytest.mark.parametrize('place', ['top', 'list'])
def test_unfit_values_are_refused_with_their_path(tmp_path, bad, place):
    record = {'a': {'key': bad}} if place == 'top' else {'a': [0, {'b': bad}]}
    (tmp_path / 'r.json').write_text('old')
    with pytest.raises(ArtifactError, match=r'r\.json was not written: a\.(key|1\.b)'):
        tuning_artifacts.write_json(tmp_path / 'r.json', record)
    assert (tmp_path / 'r.json').read_text() == 'old'


@pytest.mark.parametrize('bad', [None, [], 'text', 3])
def test_only_dicts_are_records(tmp_path, bad):
    with pytest.raises(ArtifactError, match='not a dict'):
        tuning_artifacts.write_json(tmp_path / 'r.json', bad)
    with pytest.raises(ArtifactError, match='not a dict'):
        tuning_artifacts.save_checkpoint(tmp_path / 'c.pt', bad)


@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'{',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'[1]',
        b'null',
        b'\xff\xfe',
        b'{"a": 1} x',
        pytest.param(b'[' * 100_000, id='deep'),
    ],
)
def test_damaged_json_is_an_error_of_ours(tmp_path, content):
    path = tmp_path / 'r.json'
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=re.escape(str(path))):
        tuning_artifacts.read_json(path)


def test_every_cut_of_a_record_is_noticed(tmp_path):
    tuning_artifacts.write_json(
        tmp_path / 'r.json', {'best_score': 0.25, 'trials': [{'lr': 1e-4, 'ok': True}], 'n': 12}
    )
    data = (tmp_path / 'r.json').read_bytes()
    for n in range(len(data) - 1):  # all but the last newline
        (tmp_path / 'cut.json').write_bytes(data[:n])
        with pytest.raises(ArtifactError):
            tuning_artifacts.read_json(tmp_path / 'cut.json')


def test_plain_converts_what_the_package_computes():
    got = tuning_artifacts.plain(
        {
            'a': np.float32(0.5),
            'b': [np.int64(2), torch.tensor(True)],
            'c': (1, np.arange(2)),
            'd': Path('x'),
            'e': np.str_('s'),
        }
    )
    assert same(got, {'a': 0.5, 'b': [2, True], 'c': [1, [0, 1]], 'd': 'x', 'e': 's'})
    for bad in (object(), {1, 2}, b'x', 1j):
        pytest.raises(ArtifactError, tuning_artifacts.plain, [bad])


# ---- checkpoints ---------------------------------------------------------------------------------


def test_checkpoint_round_trip(tmp_path):
    digest = tuning_artifacts.save_checkpoint(tmp_path / 'c.pt', PAYLOAD)
    assert same(
        tuning_artifacts.load_checkpoint(tmp_path / 'c.pt', keys=PAYLOAD, sha256_expected=digest),
        PAYLOAD,
    )
    assert (
        tuning_artifacts.sha256_file(tmp_path / 'c.pt')
        == digest
        == tuning_artifacts.save_checkpoint(tmp_path / 'other-name.pt', PAYLOAD)
    )


def test_state_dict_and_parameters_come_back_as_tensors(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    tuning_artifacts.save_checkpoint(
        tmp_path / 'c.pt', {'state_dict': net.state_dict(), 'p': net[0].weight}
    )
    back = tuning_artifacts.load_checkpoint(tmp_path / 'c.pt')
    assert type(back['state_dict']) is dict and not back['p'].requires_grad
    torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).load_state_dict(
        back['state_dict']
    )


@pytest.mark.parametrize(
    'bad', [np.float64(1), math.nan, (1,), object, np.zeros(2), {1: torch.zeros(1)}], ids=repr
)
def test_unfit_payloads_are_refused(tmp_path, bad):
    with pytest.raises(ArtifactError, match=r'was not written: a\.b'):
        tuning_artifacts.save_checkpoint(tmp_path / 'c.pt', {'a': {'b': bad}})
    assert names(tmp_path) == []


def test_format_version_is_not_for_the_caller(tmp_path):
    with pytest.raises(ArtifactError, match='format_version'):
        tuning_artifacts.save_checkpoint(tmp_path / 'c.pt', {'format_version': 3})


@pytest.mark.parametrize(
    'version, says', [(None, 'older'), (0, 'older'), ('1', 'older'), (True, 'older'), (99, 'newer')]
)
def test_other_formats(tmp_path, version, says):
    torch.save({'format_version': version, 'w': torch.zeros(1)}, tmp_path / 'c.pt')
    with pytest.raises(ArtifactError, match=rf'c\.pt was written by an? {says} moe_expert'):
        tuning_artifacts.load_checkpoint(tmp_path / 'c.pt')


def test_missing_checkpoint(tmp_path):
    for read in (
        tuning_artifacts.load_checkpoint,
        tuning_artifacts.sha256_file,
        tuning_artifacts.read_json,
    ):
        with pytest.raises(ArtifactError, match='does not exist'):
            read(tmp_path / 'no.pt')
        with pytest.raises(ArtifactError, match='cannot be read'):
            read(tmp_path)


def test_missing_keys_are_named(tmp_path):
    tuning_artifacts.save_checkpoint(tmp_path / 'c.pt', PAYLOAD)
    with pytest.raises(ArtifactError, match=r'c\.pt lacks gate, temperature'):
        tuning_artifacts.load_checkpoint(
            tmp_path / 'c.pt', keys=['best_score', 'gate', 'temperature']
        )


def test_another_files_checksum(tmp_path):
    tuning_artifacts.save_checkpoint(tmp_path / 'c.pt', PAYLOAD)
    with pytest.raises(ArtifactError, match='SHA-256 differs'):
        tuning_artifacts.load_checkpoint(tmp_path / 'c.pt', sha256_expected='0' * 64)


def test_other_content_than_a_dict(tmp_path):
    torch.save([1, 2], tmp_path / 'c.pt')
    with pytest.raises(ArtifactError, match='holds a list'):
        tuning_artifacts.load_checkpoint(tmp_path / 'c.pt')


def test_truncation_and_flipped_bytes_are_noticed(tmp_path):
    """Whatever damage.

    Our own error, or (bytes that carry no content) the very same payload; never other numbers.
    """
    tuning_artifacts.save_checkpoint(tmp_path / 'c.pt', PAYLOAD)
    data = (tmp_path / 'c.pt').read_bytes()
    rng = np.random.default_rng(0)
    for n in rng.integers(0, len(data), 150):
        (tmp_path / 'cut.pt').write_bytes(data[:n])
        with pytest.raises(ArtifactError, match=r'cut\.pt'):
            tuning_artifacts.load_checkpoint(tmp_path / 'cut.pt')
    refused = 0
    for n in rng.integers(0, len(data), 300):
        (tmp_path / 'flip.pt').write_bytes(
            data[:n] + bytes([data[n] ^ (1 << rng.integers(8))]) + data[n + 1 :]
        )
        try:
            assert same(tuning_artifacts.load_checkpoint(tmp_path / 'flip.pt'), PAYLOAD)
        except ArtifactError:
            refused += 1
    assert refused > 50


@fs
@given(data=st.binary(max_size=300))
def test_rubbish_is_refused(tmp_path, data):
    (tmp_path / 'c.pt').write_bytes(data)
    with pytest.raises(ArtifactError, match=r'c\.pt'):
        tuning_artifacts.load_checkpoint(tmp_path / 'c.pt')
    (tmp_path / 'r.json').write_bytes(data + b'\xff')
    with pytest.raises(ArtifactError, match=r'r\.json'):
        tuning_artifacts.read_json(tmp_path / 'r.json')


class Evil:
    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (os.path.join(self.folder, 'it ran'),)


def hide_in_zip(folder, data):
    torch.save({'format_version': 1}, folder / 'c.pt')
    with zipfile.ZipFile(folder / 'c.pt') as old:
        parts = {n: old.read(n) for n in old.namelist()}
    with zipfile.ZipFile(folder / 'c.pt', 'w') as new:
        for n, content in parts.items():
            new.writestr(n, data if n.endswith('data.pkl') else content)


@pytest.mark.parametrize(
    'how', ['torch.save', 'legacy torch.save', 'raw pickle', 'inside the archive', 'nested']
)
def test_programs_in_checkpoints_do_not_run(tmp_path, how):
    path, evil = tmp_path / 'c.pt', Evil(tmp_path)
    if how == 'torch.save':
        torch.save({'format_version': 1, 'state_dict': evil}, path)
    elif how == 'legacy torch.save':
        torch.save({'format_version': 1, 'w': evil}, path, _use_new_zipfile_serialization=False)
    elif how == 'raw pickle':
        path.write_bytes(pickle.dumps(evil))
    elif how == 'inside the archive':
        hide_in_zip(tmp_path, pickle.dumps(evil, protocol=2))
    else:
        torch.save({'format_version': 1, 'a': [{'b': [torch.zeros(2), evil]}]}, path)
    with pytest.raises(ArtifactError, match=r'c\.pt'):
        tuning_artifacts.load_checkpoint(path)
    assert not (tmp_path / 'it ran').exists()
    if how in ('raw pickle', 'torch.save'):  # the trap is real: the careless way springs it
        with open(path, 'rb') as file:
            pickle.load(file) if how == 'raw pickle' else torch.load(file, weights_only=False)
        assert (tmp_path / 'it ran').exists()


def test_a_view_does_not_drag_its_population_along(tmp_path):
    tuning_artifacts.save_checkpoint(tmp_path / 'c.pt', {'w': torch.zeros(1000, 1000)[3]})
    assert (tmp_path / 'c.pt').stat().st_size < 10_000


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'bad',
    [
        '../x',
        '..',
        '.',
        '/abs',
        'a/b',
        'a\\b',
        '',
        ' ',
        'a b',
        'C:x',
        '~',
        '.x',
        '-x',
        'a..b',
        'a\0b',
        'a\n',
        'ü',
        'x' * 65,
        None,
        3,
    ],
)
def test_names_that_lead_elsewhere(tmp_path, bad):
    with pytest.raises(ArtifactError, match='cannot be part of a file name'):
        ExpertFiles(tmp_path, bad)
    with pytest.raises(ArtifactError, match='cannot be part of a file name'):
        tuning_folder.claim(tmp_path, bad, SETTINGS)
    with pytest.raises(ArtifactError, match='not an expert'):
        ExpertFiles(tmp_path, 'bail').checkpoint(bad)
    assert names(tmp_path) == []


@fs
@given(name=st.text(max_size=70))
def test_any_text_is_refused_or_stays_in_its_folder(name):
    try:
        files = ExpertFiles('weights', name)
    except ArtifactError:
        return
    for path in tuning_folder.everything(files):
        assert path.parent == Path('weights') and path.resolve().parent == Path('weights').resolve()


def test_contract_names(tmp_path):
    files = ExpertFiles(tmp_path, 'bail')
    assert [files.checkpoint(e).name for e in EXPERTS] == [
        f'bail_expert{i}_best.pt' for i in (1, 2, 3)
    ]
    assert [files.results(e).name for e in EXPERTS] == [
        f'bail_expert{i}_tuning_results.json' for i in (1, 2, 3)
    ]
    assert files.summary == tmp_path / 'bail_expert_tuning_summary.json'
    assert files.report().name == 'bail_experts_tuning_report.ipynb'
    assert files.report('expert2').name == 'bail_expert2_tuning_report.ipynb'


def test_everything_lists_every_name_once():
    files = ExpertFiles('w', 'bail')
    listed = tuning_folder.everything(files)
    assert len(set(listed)) == len(listed) and listed[-1] == files.settings
    properties = [
        getattr(files, n) for n, v in vars(ExpertFiles).items() if isinstance(v, property)
    ]
    assert set(properties) <= set(listed) and {
        files.moe_report(),
        files.moe_report('.html'),
        files.report(),
    } <= set(listed)


def test_no_data_sets_files_are_anothers():
    """Not even for a data set called bail_expert1 or bail_moe.

    No ending is `_something` before another ending.
    """
    ends = [p.name.removeprefix('bail') for p in tuning_folder.everything(ExpertFiles('w', 'bail'))]
    assert not [(a, b) for a, b in product(ends, ends) if a != b and a.endswith(b)]


# ---- whose files ---------------------------------------------------------------------------------


def fill(files):
    for path in tuning_folder.everything(files)[:-1]:
        path.write_text('x')


def test_same_claim_again_changes_nothing(tmp_path):
    files = tuning_folder.claim(tmp_path / 'new' / 'folder', 'bail', SETTINGS)
    fill(files)
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in tuning_folder.everything(files)}
    assert (
        tuning_folder.claim(tmp_path / 'new' / 'folder', 'bail', dict(reversed(SETTINGS.items())))
        == files
    )
    assert before == {
        p: (p.read_bytes(), p.stat().st_mtime_ns) for p in tuning_folder.everything(files)
    }
    assert tuning_folder.owner(tmp_path / 'new' / 'folder', 'bail') == SETTINGS


def test_another_setting_is_told_both_values(tmp_path):
    fill(tuning_folder.claim(tmp_path, 'bail', SETTINGS))
    before = names(tmp_path)
    with pytest.raises(ArtifactError) as failure:
        tuning_folder.claim(
            tmp_path, 'bail', {**SETTINGS, 'seed': 7, 'drop': ['TIME'], 'fingerprint': 'cd34'}
        )
    for part in (
        'seed: 0 there, 7 asked',
        'drop: [] there, ["TIME"] asked',
        'fingerprint: "ab12" there, "cd34" asked',
        'overwrite=True',
    ):
        assert part in str(failure.value)
    assert 'edition' not in str(failure.value) and names(tmp_path) == before


def test_settings_that_come_or_go_are_differences():
    assert tuning_folder.differences({'a': 1}, {'b': None}) == [
        'a: 1 there, not set asked for',
        'b: not set there, null asked for',
    ]
    assert tuning_folder.differences({'a': {'x': 1, 'y': 2}}, {'a': {'y': 2, 'x': 1}}) == []
    assert tuning_folder.differences({'a': 1}, {'a': True}) == ['a: 1 there, true asked for']


def test_overwrite_replaces_this_data_set_only(tmp_path):
    for name in ('bail', 'bail_2020', 'bail_expert1', 'german'):
        fill(tuning_folder.claim(tmp_path, name, SETTINGS))
    (tmp_path / 'bail_notes.txt').write_text('mine')
    tuning_folder.claim(tmp_path, 'bail', {**SETTINGS, 'seed': 1}, overwrite=True)
    kept = [
        p
        for other in ('bail_2020', 'bail_expert1', 'german')
        for p in tuning_folder.everything(ExpertFiles(tmp_path, other))
    ]
    assert names(tmp_path) == sorted(
        [p.name for p in kept] + ['bail_notes.txt', 'bail_settings.json']
    )
    assert tuning_folder.owner(tmp_path, 'bail')['seed'] == 1


def test_overwrite_is_the_cure_of_damage_too(tmp_path):
    files = tuning_folder.claim(tmp_path, 'bail', SETTINGS)
    fill(files)
    tuning_folder.claim(tmp_path, 'bail', SETTINGS, overwrite=True)
    assert names(tmp_path) == ['bail_settings.json']
    files.settings.write_text('{"half')
    with pytest.raises(ArtifactError, match='damaged'):
        tuning_folder.claim(tmp_path, 'bail', SETTINGS)
    tuning_folder.claim(tmp_path, 'bail', SETTINGS, overwrite=True)
    assert tuning_folder.owner(tmp_path, 'bail') == SETTINGS


def test_an_older_folder(tmp_path):
    "Files without a record of their settings, or with one of another format."
    (tmp_path / 'bail_expert1_best.pt').write_text('x')
    with pytest.raises(
        ArtifactError, match=r'bail_expert1_best\.pt but no bail_settings\.json.*older'
    ):
        tuning_folder.claim(tmp_path, 'bail', SETTINGS)
    tuning_artifacts.write_json(
        tmp_path / 'german_settings.json', {'format_version': 0, 'settings': SETTINGS}
    )
    with pytest.raises(ArtifactError, match='older moe_expert'):
        tuning_folder.claim(tmp_path, 'german', SETTINGS)
    tuning_artifacts.write_json(tmp_path / 'math_settings.json', {'format_version': 1})
    with pytest.raises(ArtifactError, match='holds no settings'):
        tuning_folder.claim(tmp_path, 'math', SETTINGS)
    for name in ('bail', 'german', 'math'):
        assert tuning_folder.claim(tmp_path, name, SETTINGS, overwrite=True)


@pytest.mark.parametrize(
    'bad', [None, {'seed': np.int64(0)}, {'drop': ('TIME',)}, {'rate': math.nan}], ids=repr
)
def test_settings_must_be_plain(tmp_path, bad):
    with pytest.raises(ArtifactError, match='settings of bail'):
        tuning_folder.claim(tmp_path, 'bail', bad)
    assert names(tmp_path) == []


def test_cache_dir_that_is_a_file(tmp_path):
    (tmp_path / 'f').touch()
    for bad in (tmp_path / 'f', tmp_path / 'f' / 'below'):
        with pytest.raises(ArtifactError, match='is a file or lies below one'):
            tuning_folder.claim(bad, 'bail', SETTINGS)


@pytest.fixture
def unprivileged():
    "Root may write anywhere: be nobody for a while."
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_read_only_cache_dir(unprivileged):
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        tuning_folder.claim(folder, 'bail', SETTINGS)
        tuning_artifacts.save_checkpoint(ExpertFiles(folder, 'bail').checkpoint('expert1'), PAYLOAD)
        os.chmod(folder, 0o555)
        try:
            with pytest.raises(
                ArtifactError, match=r'is read-only for this user.*another cache_dir'
            ):
                tuning_folder.claim(folder, 'bail', SETTINGS)
            with pytest.raises(ArtifactError, match='could not be made'):
                tuning_folder.claim(Path(folder) / 'below', 'bail', SETTINGS)
            with pytest.raises(ArtifactError, match='could not be written'):
                tuning_artifacts.write_json(Path(folder) / 'r.json', {})
            with (
                pytest.raises(ArtifactError, match='could not be locked'),
                tuning_folder.locked(ExpertFiles(folder, 'german')),
            ):
                pass
            assert tuning_folder.owner(folder, 'bail') == SETTINGS  # reading still works
            assert same(
                tuning_artifacts.load_checkpoint(ExpertFiles(folder, 'bail').checkpoint('expert1')),
                PAYLOAD,
            )
        finally:
            os.chmod(folder, 0o755)


def test_a_file_that_cannot_be_removed(tmp_path, monkeypatch):
    fill(tuning_folder.claim(tmp_path, 'bail', SETTINGS))
    with monkeypatch.context() as patch:
        patch.setattr(Path, 'unlink', fail_with(errno.EACCES))
        with pytest.raises(ArtifactError, match='could not be removed: Permission denied'):
            tuning_folder.claim(tmp_path, 'bail', {'seed': 1}, overwrite=True)
    assert tuning_folder.owner(tmp_path, 'bail') == SETTINGS


def try_claim(folder, seed, start, answers):
    start.wait()
    try:
        answers.put((seed, bool(tuning_folder.claim(folder, 'bail', {**SETTINGS, 'seed': seed}))))
    except ArtifactError:
        answers.put((seed, False))


def test_one_of_many_claimants_wins(tmp_path):
    start, answers = processes.Event(), processes.Queue()
    claimants = [
        processes.Process(target=try_claim, args=(tmp_path, seed, start, answers))
        for seed in range(4)
    ]
    for c in claimants:
        c.start()
    start.set()
    won = [seed for seed, ok in (answers.get(timeout=120) for _ in claimants) if ok]
    for c in claimants:
        c.join()
    assert len(won) == 1 and tuning_folder.owner(tmp_path, 'bail')['seed'] == won[0]


def hold_lock(folder, held):
    with tuning_folder.locked(ExpertFiles(folder, 'bail')):
        held.set()
        time.sleep(600)


def test_a_held_lock_is_waited_for_and_a_killed_holder_lets_go(tmp_path):
    held = processes.Event()
    holder = processes.Process(target=hold_lock, args=(tmp_path, held))
    holder.start()
    try:
        assert held.wait(60)
        with (
            pytest.raises(ArtifactError, match='another process'),
            tuning_folder.locked(ExpertFiles(tmp_path, 'bail'), timeout=0.2),
        ):
            pass
        with tuning_folder.locked(ExpertFiles(tmp_path, 'german'), timeout=0.2):
            pass  # each data set has its own
    finally:
        holder.kill()
        holder.join()
    with tuning_folder.locked(ExpertFiles(tmp_path, 'bail'), timeout=5):
        pass


def test_versions_are_plain_and_complete(tmp_path):
    found = tuning_artifacts.versions()
    assert (
        found['torch'].split('+')[0] == torch.__version__.split('+')[0]
        and found['python'] == sys.version.split()[0]
    )
    assert {'moe_expert', 'optuna', 'platform'} <= found.keys()
    tuning_artifacts.write_json(tmp_path / 'v.json', found)
    read = json.loads((tmp_path / 'v.json').read_text())
    assert {k: read[k] for k in found} == found and len(read) == len(found) + 1
