"Intervals that cover: against scipy, real permutations, and samples of known populations."

import importlib.util
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from moe_expert.scores import procedure
from moe_expert.scores.attributions import js_divergence
from moe_expert.scores.evaluation import NodeRecord
from moe_expert.scores.intervals import (
    Observations,
    groups_left_out,
    interval_text,
    intervals,
    newcombe,
    score_intervals,
    scores_with_intervals,
    wilson,
)

# by its path: the name is that of a package that measures tests
_SPEC = importlib.util.spec_from_file_location(
    'benchmark_of_coverage', ROOT / 'benchmarks' / 'coverage.py'
)
coverage = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(coverage)
sys.path.remove(str(ROOT / 'benchmarks'))  # which it has put there

GAPS = ('dp', 'eo', 'fair_result', 'ref', 'vef', 'att_jsd', 'fair_procedure')


def people(seed: int, n: int, tied: bool = False, leaning: float = 0.0) -> Observations:
    "Random people of two groups, each with both outcomes."
    draw = torch.Generator().manual_seed(seed)
    sens = (torch.rand(n, generator=draw) < 0.4).long()
    y = torch.randint(2, (n,), generator=draw)
    sens[:4], y[:4] = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    p1 = torch.rand(n, generator=draw).double() * (1 - leaning * sens)
    fidelity = torch.randn(n, generator=draw).double()
    fidelity = fidelity.round() if tied else fidelity
    drop = torch.randint(-1, 2, (n,), generator=draw).double()
    shares = torch.rand(n, 5, generator=draw).double() ** 3
    return Observations(p1, y, sens, fidelity, drop, shares / shares.sum(-1, keepdim=True))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(8, 120), st.booleans(), st.sampled_from([0.0, 0.8]))
def test_every_interval_holds_its_point_and_its_debiased_value(seed, n, tied, leaning):
    for name, i in score_intervals(people(seed, n, tied, leaning)).items():
        assert i.low <= i.value <= i.high, name
        assert i.debiased is None or i.low <= i.debiased <= i.high, name
        if name in GAPS:
            assert 0 <= i.low and i.debiased <= i.value + 1e-12 and i.by_chance >= 0, name


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(8, 120), st.booleans())
def test_neither_the_order_of_people_nor_the_names_of_groups_matter(seed, n, tied):
    seen = people(seed, n, tied, 0.3)
    mixed = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    columns = [getattr(seen, k)[mixed] for k in coverage.COLUMNS]
    columns[2] = 1 - columns[2]
    first, second = score_intervals(seen), score_intervals(Observations(*columns))
    for name, i in first.items():
        for part in ('value', 'low', 'high', 'debiased', 'by_chance'):
            a, b = getattr(i, part), getattr(second[name], part)
            assert (a is None) == (b is None) and (a is None or abs(a - b) < 1e-9), (name, part)


def test_values_are_those_of_the_definitions():
    seen = people(1, 90, tied=True)
    scores = coverage.scores_of({k: getattr(seen, k) for k in coverage.COLUMNS})
    for name, i in score_intervals(seen).items():
        assert abs(i.value - scores[name]) < 1e-12, name


@pytest.mark.parametrize('p, n, q, m', [(0.0, 10, 0.0, 20), (0.8, 70, 0.6, 80), (1.0, 5, 1 / 9, 9)])
def test_newcombe_combines_scipys_wilson_intervals(p, n, q, m):
    ends = [
        stats.binomtest(round(s * k), k).proportion_ci(method='wilson') for s, k in ((p, n), (q, m))
    ]
    value, low, high = newcombe((p, n), (q, m))
    p, q = round(p * n) / n, round(q * m) / m
    down = np.hypot(p - ends[0].low, ends[1].high - q)
    up = np.hypot(ends[0].high - p, q - ends[1].low)
    assert (value, low, high) == pytest.approx((p - q, p - q - down, p - q + up), abs=1e-9)
    assert wilson(p, n) == pytest.approx(tuple(ends[0]), abs=1e-9)


def test_debiased_gap_is_the_mean_of_a_folded_normal():
    "A measured gap that is the mean of scipy's folded normal is debiased to its parameter."
    seen = people(3, 400, leaning=0.4)
    i = score_intervals(seen)['dp']
    rates = [seen.decided[seen.sens == g] for g in (0, 1)]
    smooth = [((r.sum() + 1) / (len(r) + 2), len(r) + 2) for r in rates]
    se = float(sum(p * (1 - p) / n for p, n in smooth) ** 0.5)
    assert stats.foldnorm.mean(i.debiased / se, scale=se) == pytest.approx(i.value.item(), abs=1e-6)


def test_chance_is_the_mean_over_real_permutations():
    seen, draw = people(5, 300), torch.Generator().manual_seed(0)
    sens = torch.stack([seen.sens[torch.randperm(300, generator=draw)] for _ in range(3000)])
    positives = seen.y > 0
    among = torch.stack(
        [
            seen.sens[positives][torch.randperm(int(positives.sum()), generator=draw)]
            for _ in range(3000)
        ]
    )

    def gap(values, labels):
        means = [(values * (labels == g)).sum(-1) / (labels == g).sum(-1) for g in (0, 1)]
        return (means[0] - means[1]).abs().mean()

    groups = [(sens == g).double() / (sens == g).sum(-1, keepdim=True) for g in (0, 1)]
    expected = {
        'dp': gap(seen.decided, sens),
        'eo': gap(seen.decided[positives], among),
        'ref': procedure.ref(seen.fidelity, sens).mean(),
        'vef': procedure.vef(seen.fidelity, seen.drop, 0 * seen.drop, sens).mean(),
        'att_jsd': js_divergence(*(g @ seen.shares for g in groups)).mean(),
    }
    found = score_intervals(seen)
    for name, mean in expected.items():
        assert found[name].by_chance == pytest.approx(mean.item(), rel=0.06), name
    fair = (found['dp'].by_chance + found['eo'].by_chance) / 2
    assert found['fair_result'].by_chance == pytest.approx(fair.item())


def test_auc_and_utility_match_the_bootstrap_in_width():
    seen, draw = people(7, 400), torch.Generator().manual_seed(0)
    seen = Observations((2 * seen.p1 + seen.y) / 3, seen.y, seen.sens)
    places = torch.randint(400, (2000, 400), generator=draw)
    drawn = Observations(seen.p1[places], seen.y[places], seen.sens.expand(2000, -1))
    again, found = score_intervals(drawn), score_intervals(seen)
    for name in ('acc', 'f1', 'auc', 'utility'):
        width = 2 * 1.96 * again[name].value.std()
        assert (found[name].high - found[name].low) / width == pytest.approx(1, abs=0.15), name


def test_what_does_not_exist_is_told_and_never_zero():
    nodes = torch.arange(6)
    sens, y = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 1, 1, 0, 0, 0])
    record = NodeRecord(nodes, y, sens, p1=torch.linspace(0, 1, 6)[None])
    told = scores_with_intervals(record, ('men', 'women'))
    for name in ('eo', 'fair_result'):
        assert told[name] == dict(
            value=None, low=None, high=None, why='group women has no people with outcome 1'
        )
    assert interval_text(**told['eo']) == 'undefined: group women has no people with outcome 1'
    assert told['dp']['value'] is not None and told['auc']['value'] is not None
    record = NodeRecord(nodes, 0 * y, 0 * sens, p1=torch.linspace(0, 1, 6)[None])
    told = scores_with_intervals(record, ('men', 'women'))
    assert told['auc']['why'] == told['utility']['why'] == 'nobody has outcome 1'
    assert told['dp']['why'] == 'group women has no people'
    assert told['acc']['value'] == 0.5


def record_of(
    groups: int, n: int, seed: int = 0, attributes: int = 1, weighted: bool = False
) -> NodeRecord:
    "Two models on random people; some are not compared."
    draw = torch.Generator().manual_seed(seed)
    random = lambda *shape: torch.rand(*shape, generator=draw).double()
    sens = torch.randint(-1, groups, (n, attributes), generator=draw)
    return NodeRecord(
        torch.arange(n),
        torch.randint(2, (n,), generator=draw),
        sens[:, 0] if attributes == 1 else sens,
        random(2, n),
        fidelity=random(2, n).round(decimals=1),
        flipped=random(2, n).round(),
        attributions=random(2, n, 4) - 0.5,
        weight=0.2 + 3 * random(n) if weighted else None,
    )


def differences(first: dict, second: dict) -> dict[str, float]:
    "Largest difference of each score's interval."
    parts = ('value', 'low', 'high', 'debiased', 'by_chance')
    ends = lambda i: torch.stack([v for v in (getattr(i, p) for p in parts) if v is not None])
    return {name: float((ends(i) - ends(second[name])).abs().max()) for name, i in first.items()}


MANY = [(2, 1, False), (3, 1, False), (12, 1, True), (2, 2, False), (4, 2, True)]


@pytest.mark.parametrize('groups, attributes, weighted', MANY)
def test_any_number_of_groups_has_the_scores_of_the_definitions(groups, attributes, weighted):
    record = record_of(groups, 300, 1, attributes, weighted)
    scores, found = record.scores(), intervals(record)
    for name, i in found.items():
        assert torch.allclose(i.value, scores[name], rtol=0, atol=1e-12), name
        assert bool(((i.low <= i.value) & (i.value <= i.high)).all()), name
        assert i.debiased is None or bool(((i.low <= i.debiased) & (i.debiased <= i.high)).all())
    numbers = torch.randperm(groups, generator=torch.Generator().manual_seed(2))
    record.sens = torch.where(record.sens >= 0, numbers[record.sens.clamp(min=0)], -1)
    record.sens = record.sens if attributes == 1 else record.sens.flip(1)
    assert max(differences(found, intervals(record)).values()) < 1e-9


@pytest.mark.parametrize('groups, attributes', [(2, 1), (5, 1), (3, 2)])
def test_weights_of_one_change_no_bit_and_their_unit_does_not_matter(groups, attributes):
    record = record_of(groups, 200, 2, attributes)
    plain = intervals(record)
    record.weight = torch.ones(200).double()
    assert max(differences(plain, intervals(record)).values()) == 0
    record.weight = 1 + torch.arange(200).double() % 3
    weighed = intervals(record)
    record.weight = 10 * record.weight  # the number of places in a top is a whole number
    assert max(v for k, v in differences(weighed, intervals(record)).items() if k == 'dp') < 1e-12
    for name in ('acc', 'utility', 'selection_rate'):
        wider = (weighed[name].high - weighed[name].low) / (plain[name].high - plain[name].low)
        assert bool((wider > 1.02).all()), name


def test_people_who_are_not_compared_are_in_no_gap():
    record = record_of(3, 400, 3)
    some = record.sens >= 0
    columns = ('p1', 'fidelity', 'flipped', 'attributions')
    less = {k: getattr(record, k)[:, some] for k in columns}
    compared = NodeRecord(record.nodes[some], record.y[some], record.sens[some], **less)
    moved = differences(intervals(record), intervals(compared))
    assert max(moved[name] for name in (*GAPS, 'fair_result')) < 1e-9
    assert min(moved[name] for name in ('acc', 'utility')) > 0


def test_several_groups_by_chance_are_the_mean_over_real_permutations():
    n, draw = 600, torch.Generator().manual_seed(4)
    sens = torch.repeat_interleave(torch.arange(5), torch.tensor([20, 30, 100, 150, 300]))
    seen = people(5, n)
    found = score_intervals(Observations(seen.p1, seen.y, sens, *explained(seen)))
    labels = torch.stack([sens[torch.randperm(n, generator=draw)] for _ in range(2000)])
    means = torch.stack(
        [(seen.decided * (labels == g)).sum(1) / (sens == g).sum() for g in range(5)]
    )
    groups = [(labels == g).double() / (sens == g).sum() for g in range(5)]
    expected = {
        'dp': (means.amax(0) - means.amin(0)).mean(),
        'ref': procedure.ref(seen.fidelity, labels).mean(),
        'vef': procedure.vef(seen.fidelity, seen.drop, 0 * seen.drop, labels).mean(),
        'att_jsd': js_divergence(*(g @ seen.shares for g in groups)).mean(),
    }
    for name, mean in expected.items():
        assert found[name].by_chance == pytest.approx(mean.item(), rel=0.06), name


def explained(seen: Observations) -> list[torch.Tensor]:
    return [seen.fidelity, seen.drop, seen.shares]


def test_two_precise_groups_settle_a_gap_however_noisy_a_third_is():
    sens = torch.repeat_interleave(torch.arange(3), torch.tensor([2000, 2000, 10]))
    chosen = torch.zeros(4010).double()
    chosen[:800], chosen[2000:3200], chosen[4000:4005] = 1, 1, 1
    dp = score_intervals(Observations(chosen, 0 * sens + 1, sens))['dp']
    two = score_intervals(Observations(chosen[:4000], 0 * sens[:4000] + 1, sens[:4000]))['dp']
    assert 0.15 < dp.low < two.low and dp.high > two.high


def test_a_group_that_nobody_can_compare_drops_out_of_that_gap_alone():
    nodes = torch.arange(90)
    sens, y = nodes % 3, (nodes // 3 % 2) * (nodes % 3 != 2)  # group 2 has no positives
    record = NodeRecord(nodes, y, sens, p1=(nodes * 7 % 90)[None] / 90)
    told = scores_with_intervals(record, ('A', 'B', 'C'))
    two = scores_with_intervals(
        NodeRecord(nodes[sens < 2], y[sens < 2], sens[sens < 2], record.p1[:, sens < 2]), ('A', 'B')
    )
    assert told['eo']['value'] == pytest.approx(two['eo']['value'])
    assert told['eo']['without'] == 'group C has no people with outcome 1'
    assert told['fair_result']['without'] == told['eo']['without']
    assert 'without' not in told['dp'] and 'without' not in two['eo']
    assert interval_text(**told['eo']).endswith('(without: group C has no people with outcome 1)')
    record.y = y * (sens == 0)
    told = scores_with_intervals(record, ('A', 'B', 'C'))
    assert told['eo']['why'] == 'fewer than two groups have people with outcome 1'
    assert groups_left_out(record, ('A', 'B', 'C')) == {}
    assert intervals(record)['eo'].value.isnan().all()


@pytest.mark.parametrize(
    'groups, n, gap',
    [(3, 250, 0.0), (3, 250, 0.1), pytest.param(12, 1000, 0.1, marks=pytest.mark.slow)],
)
def test_intervals_of_many_groups_cover(groups, n, gap):
    "The small version of the study of K groups, some of 10 to 30 people, with 400 samples."
    sizes = coverage.group_sizes(groups, n)
    assert sum(sizes) == n and 10 <= min(sizes) <= 30
    cell = coverage.cell(coverage.with_groups(coverage.synthetic(), gap, sizes), n, 400, 7, 'after')
    for name, score in cell['scores'].items():
        assert 90 <= score['coverage'] <= 100, (name, score)
        assert score['holds'] == 100, name
        assert score['width'] <= 2, (name, score)
    for name in ('dp', 'eo', 'ref', 'final_score'):
        score = cell['scores'][name]
        assert abs(score['debiased']) < 0.75 * abs(score['bias']), name


@pytest.mark.parametrize('gap', [0.0, 0.1])
@pytest.mark.parametrize('n', [100, 250])
def test_intervals_cover(gap, n):
    "The small version of benchmarks/coverage.py, with 400 samples."
    cell = coverage.cell(coverage.with_gap(coverage.synthetic(), gap), n, 400, 7, 'after')
    for name, score in cell['scores'].items():
        assert 90 <= score['coverage'] <= 100, (name, score)
        assert score['holds'] == 100, name
        assert score['width'] <= 1.6, (name, score)
    final = cell['scores']['final_score']
    assert abs(final['debiased']) < 0.75 * abs(final['bias'])


def test_the_percentile_bootstrap_does_not_cover():
    "The simulation can fail: it finds the fault of the method before."
    cell = coverage.cell(coverage.with_gap(coverage.synthetic(), 0.0), 100, 40, 7, 'before')
    assert max(cell['scores'][name]['coverage'] for name in ('dp', 'eo', 'fair_result')) < 40


def test_the_committed_coverage_says_what_it_missed():
    "COVERAGE.md is rendered from coverage.json, and every cell that misses is marked."
    record = coverage.read_json(ROOT / 'benchmarks' / 'coverage.json')
    text, cells = (ROOT / 'benchmarks' / 'COVERAGE.md').read_text(encoding='utf-8'), record['cells']
    assert text == coverage.render(**record)
    assert {c['population'] for c in record['groups']} > {'3 groups', '6 groups', '12 groups'}
    assert all(c['samples'] >= 400 for c in record['groups'])
    after = [c for c in cells if c['method'] == 'after']
    assert all(c['samples'] >= 2000 for c in after) and {c['n'] for c in after} == {100, 250, 4700}
