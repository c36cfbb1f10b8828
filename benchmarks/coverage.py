"""How often do the intervals hold the truth? Samples from populations whose scores are known.

    python benchmarks/coverage.py            # what is missing, then COVERAGE.md and coverage.json
    python benchmarks/coverage.py --render   # COVERAGE.md from coverage.json
    python benchmarks/coverage.py --quick    # 100 samples a cell, into work/

Cells are kept in work/coverage (delete it to repeat everything); an interrupted run goes on where
it stopped. Seeds are fixed. The real population needs MOE_EXPERT_DATA, see README.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'benchmarks')]

import torch
from common import find_data, read_json, write_json

from moe_expert.scores import procedure
from moe_expert.scores.attributions import js_divergence
from moe_expert.scores.evaluation import plain_scores, with_final
from moe_expert.scores.facts import FACTS
from moe_expert.scores.intervals import Observations, observations, resamples, score_intervals
from moe_expert.scores.metrics import groups_of, largest

NAMES = (
    *('acc', 'f1', 'auc', 'selection_rate', 'utility', 'dp', 'eo', 'fair_result'),
    *('ref', 'vef', 'att_jsd', 'fair_procedure', 'final_score'),
)
COLUMNS = ('p1', 'y', 'sens', 'fidelity', 'drop', 'shares')
SIZES, GAPS = (100, 250, 4700), (0.0, 0.02, 0.1)
SEED = 160_000  # the method was chosen on seeds below 1000
BEFORE = {100: 300, 250: 300, 4700: 40}  # samples for the percentile bootstrap, which is slow
RESAMPLES = 200
FEW = {3: [20], 6: [10, 15, 30], 12: [10, 15, 20, 25]}  # people in the small ones of K groups
GROUP_SIZES = (250, 1000, 4700)
GROUP_SEED = 190_000


# ------------------------------------------------------------------ populations


def synthetic(people: int = 4000, features: int = 12) -> dict[str, torch.Tensor]:
    "People of one kind: outcome and probability share a score; masking an effect moves both."
    draw = torch.Generator().manual_seed(0)
    normal, uniform = (
        lambda: torch.randn(people, generator=draw).double(),
        lambda: torch.rand(people, generator=draw).double(),
    )
    score = normal()
    y = (uniform() < torch.sigmoid(1.6 * score - 0.4)).double()
    margin = 1.4 * score - 0.3
    effect = torch.exp(0.8 * normal() - 0.6) * (uniform() > 0.15)  # 15 % have no explanation
    p1 = torch.sigmoid(margin)
    masked = torch.sigmoid(margin - torch.where(p1 >= 0.5, 1, -1) * effect)
    weights = -torch.rand(people, features, generator=draw).double().log()
    weights = weights * torch.linspace(0.2, 2, features).double()
    return {
        'p1': p1,
        'y': y,
        'fidelity': procedure.fidelity(p1, masked),
        'drop': ((p1 >= 0.5) == y).double() - ((masked >= 0.5) == y).double(),
        'shares': weights / weights.sum(-1, keepdim=True),
    }


def bail(work: Path) -> dict[str, torch.Tensor]:
    "Everybody in bail as a tuned utility expert (three trials) sees them."
    kept = work / 'bail.pt'
    if not kept.exists():
        from moe_expert.datasets import load_dataset
        from moe_expert.scores.evaluation import Evaluator
        from moe_expert.tune_experts import ExpertTuner
        from moe_expert.tuning.records import load_expert

        data = load_dataset('bail', data_dir=find_data())
        ExpertTuner(data, cache_dir=work / 'expert').tune_expert('expert1', n_trials=3)
        expert, _ = load_expert(work / 'expert', data.name, 'expert1')
        seen = observations(Evaluator(data, torch.arange(data.num_nodes)).record(expert))
        torch.save({name: getattr(seen, name)[0].clone() for name in COLUMNS}, kept)
    return torch.load(kept)


def _narrowed(f, target: float, low: float, high: float) -> float:
    "Where the increasing f reaches the target."
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if f(middle) < target else (low, middle)
    return high


def _other_group(base: dict, gap: float, copies: tuple[int, int]) -> dict:
    "The same people, changed until dp, eo, vef, ref and att_jsd are all about `gap`."
    other, draw = {k: v.clone() for k, v in base.items()}, torch.Generator().manual_seed(1)

    def some(people: torch.Tensor, count: int) -> torch.Tensor:
        places = people.nonzero()[:, 0]
        return places[torch.randperm(len(places), generator=draw)[: round(count)]]

    for outcome in (0, 1):
        people = base['y'] == outcome
        lost = some(people & (base['p1'] >= 0.5), gap * int(people.sum()))
        other['p1'][lost] = (1 - base['p1'][lost] - 1e-9).clamp(min=0)
    k = procedure.places(len(base['y']))
    top = procedure.top_weights(base['fidelity'], k) >= 1
    other['drop'][some(top & (base['drop'] == 1), gap * k)] = 0
    sens = torch.cat([torch.full((n * len(top),), g) for g, n in enumerate(copies)])
    repeated = base['fidelity'].repeat(copies[0])

    def ref(loss: float) -> float:
        changed = (other['fidelity'] * (1 - loss)).repeat(copies[1])
        return procedure.ref(torch.cat([repeated, changed]), sens).item()

    loss = _narrowed(ref, gap, 0.0, 0.95)
    other['fidelity'] = other['fidelity'] * (1 - loss)
    shares, rolled = base['shares'], base['shares'].roll(base['shares'].shape[1] // 2, 1)
    mix = _narrowed(
        lambda w: js_divergence(shares.mean(0), ((1 - w) * shares + w * rolled).mean(0)),
        *(gap, 0.0, 1.0),
    )
    other['shares'] = (1 - mix) * shares + mix * rolled
    return other


def with_gap(
    base: dict[str, torch.Tensor],  # people of one kind
    gap: float,  # 0: the groups are exactly alike
    copies: tuple[int, int] = (3, 2),  # of everybody in groups 0 and 1
) -> dict[str, torch.Tensor]:
    "A population of two groups whose true gaps are about `gap`."
    base = {k: v for k, v in base.items() if k != 'sens'}
    groups = base, (_other_group(base, gap, copies) if gap else base)
    people = {
        k: torch.cat([g[k].repeat(n, *[1] * (g[k].dim() - 1)) for g, n in zip(groups, copies)])
        for k in base
    }
    size = len(base['y'])
    return people | {'sens': torch.cat([torch.full((n * size,), g) for g, n in enumerate(copies)])}


def group_sizes(
    groups: int,  # 3, 6 or 12
    n: int,  # people
) -> list[int]:
    "Some groups of 10 to 30 people; the rest shrink linearly."
    few = FEW[groups]
    many, left = groups - len(few), n - sum(few)
    sizes = [left * (many - k) * 2 // (many * (many + 1)) for k in range(many)]
    return [sizes[0] + left - sum(sizes), *sizes[1:], *few]


def with_groups(
    base: dict[str, torch.Tensor],  # people of one kind
    gap: float,  # 0: the groups are exactly alike
    sizes: list[int],  # of the K groups in a sample
    attributes: int = 1,  # 2: the groups are cells; their number // 2 and % 2 are separate
    leaning: float = 0.0,  # > 0: people with a high p1 are drawn more often, and weigh less
) -> dict[str, torch.Tensor]:
    "A population of K groups; every second one is changed by about `gap`."
    odd = [k // attributes % 2 for k in range(len(sizes))]
    share = sum(size for size, changed in zip(sizes, odd) if changed) / sum(sizes)
    other = _other_group(base, gap, (round(10 * (1 - share)), round(10 * share))) if gap else base
    groups, people = [other if changed else base for changed in odd], len(base['y'])
    made = {k: torch.cat([g[k] for g in groups]) for k in base}
    cell = torch.arange(len(sizes)).repeat_interleave(people)
    made['sens'] = cell if attributes == 1 else torch.stack([cell // 2, cell % 2], 1)
    chances = torch.exp(leaning * made['p1']).view(len(sizes), people)
    chances = (chances / chances.mean(1, keepdim=True)).flatten()
    return made | {'cell': cell, 'sizes': torch.tensor(sizes), 'chance': chances}


def scores_of(people: dict[str, torch.Tensor], jsd=None) -> dict[str, torch.Tensor]:
    "The scores by their definitions, [...]."
    p1, y, sens, fidelity, drop = (people[k] for k in COLUMNS[:5])
    weight = people['sizes'].double()[people['cell']] if 'cell' in people else None
    extra, attributes = {'sample_weight': weight}, _attributes(people)
    scores = plain_scores(p1, y, attributes, undefined='nan', **extra)

    def divergence(sens: torch.Tensor) -> torch.Tensor:
        each = torch.ones(len(sens)).double() if weight is None else weight
        each = [each * (sens == g) for g in groups_of(sens)]
        return js_divergence(*(w @ people['shares'] / w.sum() for w in each))

    no = torch.zeros_like(drop)
    scores['ref'] = largest(lambda s: procedure.ref(fidelity, s, **extra), attributes)
    scores['vef'] = largest(lambda s: procedure.vef(fidelity, drop, no, s, **extra), attributes)
    scores['att_jsd'] = largest(divergence, attributes) if jsd is None else jsd
    return with_final(scores | {'fair_procedure': FACTS['fair_procedure'].of(scores)})


# ------------------------------------------------------------------ samples


def _attributes(people: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    "Groups of each attribute: the last dimension of `sens` where there is one more than of p1."
    sens = people['sens']
    return [sens] if sens.dim() <= people['p1'].dim() else list(sens.unbind(-1))


def _stratified(people: dict[str, torch.Tensor], count: int, seed: int) -> torch.Tensor:
    "[S, n] places: the sizes of all groups are those that are asked for."
    draw, begin, drawn = torch.Generator().manual_seed(seed), 0, []
    for size, held in zip(people['sizes'].tolist(), people['cell'].bincount().tolist()):
        chances = people['chance'][begin : begin + held]
        places = torch.multinomial(chances, count * size, replacement=True, generator=draw)
        drawn.append(begin + places.view(count, size))
        begin += held
    return torch.cat(drawn, 1)


def samples(people: dict[str, torch.Tensor], n: int, count: int, seed: int):
    "Blocks of samples [S, n] with replacement; within a block the group sizes are equal."
    if 'cell' in people:
        columns = {k: v for k, v in people.items() if k != 'sizes'}
        for rows in _stratified(people, count, seed).split(max(1, 2**17 // n)):
            yield {k: v[rows] for k, v in columns.items()}
        return
    drawn = torch.randint(
        len(people['y']), (count, n), generator=torch.Generator().manual_seed(seed)
    )
    sizes = people['sens'][drawn].sum(-1)
    for size in sizes.unique():
        for rows in drawn[sizes == size].split(max(1, 2**19 // n)):
            yield {k: v[rows] for k, v in people.items()}


def after(block: dict[str, torch.Tensor]) -> dict[str, list[torch.Tensor]]:
    "score → value, low, high, debiased [S]."
    p1, y, _, *explained = (block[k] for k in COLUMNS)
    chances = block.get('chance', torch.ones(1))
    weight = None if bool((chances == chances.flatten()[0]).all()) else 1 / chances
    found = score_intervals(Observations(p1, y, _attributes(block), *explained, weight))
    return {
        name: [i.value, i.low, i.high, i.value if i.debiased is None else i.debiased]
        for name, i in found.items()
    }


def before(block: dict[str, torch.Tensor]) -> dict[str, list[torch.Tensor]]:
    "The percentile bootstrap, stratified by group, sample by sample."
    rows = []
    for s in range(len(block['y'])):
        one = {k: v[s] for k, v in block.items()}
        places = resamples(one['sens'], RESAMPLES, seed=s)
        counts = torch.zeros(RESAMPLES, len(one['y'])).double()
        counts.scatter_add_(1, places, torch.ones_like(places, dtype=torch.double))
        members = [(one['sens'] == g).double() for g in (0, 1)]
        jsd = js_divergence(*(counts * m / m.sum() @ one['shares'] for m in members))
        drawn = {k: one[k][places] for k in COLUMNS[:5]} | {'sens': one['sens'][places[0]]}
        tails = torch.tensor([0.025, 0.975]).double()
        ends = {k: v.nanquantile(tails) for k, v in scores_of(drawn, jsd).items()}
        rows.append({k: (v, *ends[k], v) for k, v in scores_of(one).items()})
    return {k: list(torch.tensor([row[k] for row in rows]).double().T) for k in NAMES}


def cell(people: dict, n: int, count: int, seed: int, method: str) -> dict:
    "Coverage, width and bias of every score."
    blocks = [globals()[method](block) for block in samples(people, n, count, seed)]
    truths, scores = {k: v.item() for k, v in scores_of(people).items()}, {}
    for name in NAMES:
        value, low, high, debiased = (torch.cat([b[name][k] for b in blocks]) for k in range(4))
        known = value.isfinite() & low.isfinite()
        value, low, high, debiased = (v[known] for v in (value, low, high, debiased))
        truth = truths[name]
        few, many = value.quantile(torch.tensor([0.025, 0.975]).double()).tolist()
        holds = (low <= value + 1e-9) & (value <= high + 1e-9)
        holds &= (low <= debiased + 1e-9) & (debiased <= high + 1e-9)
        rounded = {
            'truth': truth,
            'coverage': 100 * ((low <= truth + 1e-9) & (truth <= high + 1e-9)).double().mean(),
            'width': (high - low).mean() / (max(many, truth) - min(few, truth)),
            'bias': value.mean() - truth,
            'debiased': debiased.mean() - truth,
            'sd': value.std(),
            'holds': 100 * holds.double().mean(),
        }
        scores[name] = {k: round(float(v), 5) for k, v in rounded.items()}
        scores[name]['samples'] = int(known.sum())
    return {'n': n, 'samples': count, 'method': method, 'scores': scores}


# ------------------------------------------------------------------ the study


def populations(work: Path):
    "name, intended gap (None: as found), people."
    made, data = synthetic(), find_data()
    for gap in GAPS:
        yield 'synthetic', gap, lambda gap=gap: with_gap(made, gap)
    if data:
        for gap in GAPS:
            yield 'bail', gap, lambda gap=gap: with_gap(bail(work), gap, (1, 1))
        yield 'bail', None, lambda: bail(work)


def run(work: Path, count: int, methods=('after', 'before')) -> list[dict]:
    "All cells; those that are in `work` are not computed again."
    cells = []
    for method in methods:
        for place, (name, gap, people) in enumerate(populations(work)):
            for n in SIZES:
                path = work / f'{method}_{name}_{gap}_{n}_{count}.json'
                if not path.exists():
                    samples_of = count if method == 'after' else min(count, BEFORE[n])
                    found = cell(people(), n, samples_of, SEED + 10 * place + n, method)
                    write_json(path, {'population': name, 'gap': gap} | found)
                    print(path.name, flush=True)
                cells.append(read_json(path))
    return cells


def group_populations():
    "name, gap, people in a sample, population."
    made = synthetic()
    for groups in FEW:
        for gap in GAPS:
            for n in GROUP_SIZES:
                sizes = group_sizes(groups, n)
                yield f'{groups} groups', gap, n, lambda g=gap, s=sizes: with_groups(made, g, s)
    three, six = group_sizes(3, 1000), group_sizes(6, 1000)
    for gap in (0.0, 0.1):
        weighed = lambda gap=gap: with_groups(made, gap, three, leaning=1.5)
        yield '3 groups, weights', gap, 1000, weighed
        yield '2 attributes', gap, 1000, lambda gap=gap: with_groups(made, gap, six, attributes=2)


def run_groups(work: Path, count: int) -> list[dict]:
    "Cells of more than two groups; those that are in `work` are not computed again."
    cells = []
    for place, (name, gap, n, people) in enumerate(group_populations()):
        path = work / f'{name}_{gap}_{n}_{count}.json'
        if not path.exists():
            found = cell(people(), n, count, GROUP_SEED + 10 * place, 'after')
            write_json(path, {'population': name, 'gap': gap} | found)
            print(path.name, flush=True)
        cells.append(read_json(path))
    return cells


ABOUT = """# Do the 95 % intervals cover?

Written by `python benchmarks/coverage.py`, which anybody can rerun; the numbers are in
`coverage.json`. People are drawn with replacement from populations whose true scores are known:
`synthetic` (4,000 kinds of people, groups of 60 and 40 %, 15 % without an explanation, so that
fidelities are tied) and `bail` (all 18,876 people as a utility expert of three trials sees them).
With a true gap of 0 both groups hold exactly the same people; for 0.02 and 0.1, one group is
changed until dp, eo, ref, vef and att_jsd are each about that large. "As found" is bail with its
own groups. Columns: true gap and n.

- **Coverage**: percent of the samples whose interval holds the true score. Asked for: 93 to 99, and
  up to 100 for a gap whose truth is 0. Cells outside are bold and marked !.
- **Width**: mean width of the intervals, divided by the 95 % range of the score over the samples,
  extended to hold the truth. Asked for: at most 1.5.
- **Bias**: mean plug-in minus truth → mean debiased minus truth, in standard deviations of the
  plug-in.
- Before: percentile bootstrap, stratified by group, {resamples} resamples, on {few} samples (n =
  4,700: {fewest}). After: `moe_expert.scores.intervals`, on {count} samples.
- The method and its constants were chosen on seeds below 1000 (see the end); the samples here have
  seeds from {seed}. Nothing was chosen after seeing them. One error was mended after the first
  look (a gap of exactly 0 had a direction, so that swapped groups disagreed): n = 100 and 250 were
  computed again on the same samples, n = 4,700, where such gaps hardly occur, was not.
"""

TRIED = {
    "MOVER on the parts' own intervals (Zou & Donner, 2008)": (
        'not used: a part at its boundary is always at its end, so the left end of a sum of gaps '
        'with truth 0 lies above 0 as soon as two debiased gaps do'
    ),
    'one bias, taken at the plug-in, for both ends of a sum of gaps': (
        'fair_result 89 % at true gap 0.1, n = 250: misses above'
    ),
    'one standard error for both ends': 'final_score 99.6 % and 1.7 times too wide at gap 0.02',
    '1.96 instead of 2.24 for the near end of final_score': '91.8 to 93.2 % at true gap 0',
    '2.24 instead of 2.1 for the near end of a sum of gaps': 'fair_procedure 99.2 % at gap 0.1',
    'least gap from 2 instead of 2.5 standard errors': 'final_score 93.0 % at true gap 0',
    'least bias at ½ instead of ¼ standard error above the plug-in': (
        'final_score up to 1.57 times as wide'
    ),
    'sizes of correlations in final_score too': 'up to 1.57 times as wide',
    'VEF with a success and a failure added to each top (Agresti–Caffo)': (
        '88.8 % at n = 100: shrinks the variance of losses of ±1'
    ),
    "VEF with all of Student's widening": (
        'bail 99.0 to 99.2 % at true gap 0.1, n = 100; with half of it 98.6 %'
    ),
}
GROUPS_ABOUT = """## More than two groups

`synthetic` again, with 3, 6 and 12 groups, of which 1, 3 and 4 have only 10 to 30 people (the rest
are unequal as well). Every second group is changed. Samples have the same group sizes: {samples} of
them per cell, seeds from {seed}; the method was chosen on seeds below 1000. `3 groups, weights`:
people with a high p1 are drawn up to 4 times as often and weigh less. `2 attributes`: kept
separate, with 3 and 2 groups; the second one has no gap. Columns: true gap and n.

The ends of a range are conservative where the truth is above 0 but the small groups' noise is
larger: then the upper end hardly ever misses. So do the composites', whose bias is taken to be the
largest that is compatible with the data.
"""
TRIED_ABOUT = """## What was tried

On seeds below 1000, 600 to 2,000 samples per cell, n = 100 and 250, both populations.

| tried | what happened |
|---|---|
"""


def _table(cells: list[dict], method: str, what: str) -> list[str]:
    shown = [c for c in cells if c['method'] == method]
    heads = [
        f'{c["population"]} {"as found" if c["gap"] is None else c["gap"]}, {c["n"]}' for c in shown
    ]
    lines = ['| score | ' + ' | '.join(heads) + ' |', '|---' * (len(shown) + 1) + '|']
    for name in NAMES:
        texts = [_text(c['scores'][name], name, what) for c in shown]
        lines.append(f'| {name} | ' + ' | '.join(texts) + ' |')
    return [*lines, '']


def missed(score: dict, what: str) -> bool:
    "Whether a cell misses what is asked for."
    if what == 'width':
        return score['width'] > 1.5
    return not 93 <= score['coverage'] <= (100 if abs(score['truth']) < 1e-6 else 99)


def _text(score: dict, name: str, what: str) -> str:
    if what == 'bias':
        sd = max(score['sd'], 1e-12)
        return f'{score["bias"] / sd:+.1f} → {score["debiased"] / sd:+.1f}'
    text = f'{score["coverage"]:.1f}' if what == 'coverage' else f'{score["width"]:.2f}'
    return f'**{text}!**' if missed(score, what) else text


def render(cells: list[dict], groups: list[dict]) -> str:
    lines = [
        ABOUT.format(
            resamples=RESAMPLES,
            few=min(c['samples'] for c in cells if c['n'] == 100),
            fewest=min(c['samples'] for c in cells if c['n'] == 4700),
            count=f'{max(c["samples"] for c in cells):,}',
            seed=f'{SEED:,}',
        )
    ]
    titles = {
        ('coverage', 'before'): 'Coverage before, %',
        ('coverage', 'after'): 'Coverage after, %',
        ('width', 'before'): 'Width before',
        ('width', 'after'): 'Width after',
        ('bias', 'after'): 'Bias: plug-in → debiased, in standard deviations',
    }
    for (what, method), title in titles.items():
        lines += [f'## {title}', '', *_table(cells, method, what)]
    holds = min(s['holds'] for c in cells if c['method'] == 'after' for s in c['scores'].values())
    lines += [f'Every interval after holds its plug-in and its debiased value: {holds:.0f} %.', '']
    tried = ''.join(f'| {what} | {result} |\n' for what, result in TRIED.items())
    about = {'samples': min(c['samples'] for c in groups), 'seed': f'{GROUP_SEED:,}'}
    lines.append(GROUPS_ABOUT.format(**about))
    for what in ('coverage', 'width', 'bias'):
        title = titles[what, 'after'].replace(' after', '')
        lines += [f'### {title}, more than two groups', '', *_table(groups, 'after', what)]
    return '\n'.join([*lines, TRIED_ABOUT + tried])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--samples', type=int, default=2000, help='per cell, after')
    parser.add_argument('--group-samples', type=int, default=2000, help='per cell of many groups')
    parser.add_argument('--quick', action='store_true', help='100 samples, results into work/')
    parser.add_argument('--render', action='store_true', help='only write COVERAGE.md again')
    asked = parser.parse_args()
    torch.set_num_threads(1)
    work = ROOT / 'work' / 'coverage'
    work.mkdir(parents=True, exist_ok=True)
    out = work / 'quick' if asked.quick else ROOT / 'benchmarks'
    if asked.render:
        record = read_json(out / 'coverage.json')
    else:
        cells = run(work, 100 if asked.quick else asked.samples)
        groups = run_groups(work, 100 if asked.quick else asked.group_samples)
        record = {'cells': cells, 'groups': groups}
        write_json(out / 'coverage.json', record)
    (out / 'COVERAGE.md').write_text(render(**record), encoding='utf-8')


if __name__ == '__main__':
    main()
