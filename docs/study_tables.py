"""Write what the study's pages say about its rows: `python docs/study_tables.py`.

With --check the pages are only compared. Everything between two marks is made from
docs/study/runs.csv: the tables and the verdicts of docs/study.md, and the verdicts in the README.
The text around them is written by hand and compares no methods.
"""

import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

import pandas as pd  # noqa: E402

from moe_expert.study import statistics, tables  # noqa: E402
from moe_expert.study.ledger import Ledger  # noqa: E402
from moe_expert.study.plan import BENCHMARKS, MAIN, VARIANTS  # noqa: E402

PAGE, README = DOCS / 'study.md', DOCS.parent / 'README.md'
KEY_OPPONENTS = [  # of the short versions
    *('uniform_mixture', 'picked_expert', statistics.HINDSIGHT),
    *('single_network', 'cfa_loss'),
]
NINE = 'with stage 3 in nine ways (`--ways nine`)'
Section = tuple[str, pd.DataFrame]  # heading, table


def cell(value) -> str:
    if isinstance(value, float):
        return '–' if pd.isna(value) else f'{value:.3f}'
    return '–' if value is None else str(value).replace('|', '\\|')


def markdown(table: pd.DataFrame) -> str:
    rows = [list(map(cell, row)) for row in table.itertuples(index=False)]
    head = [str(column) for column in table.columns]
    return '\n'.join('| ' + ' | '.join(r) + ' |' for r in [head, ['---'] * len(head), *rows])


# --- Rows


def is_benchmark(rows: pd.DataFrame) -> pd.Series:
    return rows.variant.isin(BENCHMARKS)


def confirmatory(rows: pd.DataFrame) -> pd.DataFrame:
    "Rows of the main setting, over seeds and over splits."
    return rows[(rows.phase == 'confirmatory') & (rows.setting == MAIN)]


# --- Sentences


def wrapped(text: str, indent: str = '') -> str:
    look = dict(width=100, break_long_words=False, break_on_hyphens=False)
    return textwrap.fill(text, subsequent_indent=indent, **look)


def bullets(sentences: Iterable[str]) -> str:
    return '\n'.join(wrapped(f'- {sentence}', '  ') for sentence in sentences)


def over_families(
    rows: pd.DataFrame, only: list[str] | None = None, probability: bool = True
) -> str:
    "A bullet per word, for all other methods or some of them."
    verdicts = statistics.family_verdicts(rows)
    if only:
        verdicts = verdicts[verdicts.other.isin(only)]
    return bullets(s + '.' for s in tables.verdict_sentences(verdicts, probability).values())


def sensitivity(rows: pd.DataFrame) -> str:
    "What the two other methods say about the verdicts over families that are decided."
    verdicts = statistics.family_verdicts(rows)
    decided = verdicts[verdicts.verdict != 'undecided']
    at_least = statistics.CERTAIN
    agree = decided[
        ((decided.verdict == 'better') & (decided.hierarchical_better >= at_least))
        | ((decided.verdict == 'worse') & (decided.hierarchical_better <= 1 - at_least))
        | (decided.verdict.str.startswith('prac') & (decided.hierarchical_equivalent >= at_least))
    ]
    return wrapped(
        f'*Sensitivity.* {len(decided)} of these {len(verdicts)} verdicts are decided. The '
        f'hierarchical model, which also counts how well each data set was measured, decides '
        f'{len(agree) or "none"} of them. The smallest p of the signed-rank test is '
        f'{verdicts.p_signed_rank.min():.2f}. So a decided word here rests on the t test over '
        f'{verdicts.families.max()} families alone.'
    )


def of_data_sets(rows: pd.DataFrame) -> str:
    "A bullet per variant: the decided verdicts, and how many are not."
    made = []
    for variant, verdicts in statistics.data_set_verdicts(rows).groupby('variant'):
        decided = tables.verdict_sentences(verdicts[verdicts.verdict != 'undecided'])
        n = int((verdicts.verdict == 'undecided').sum())
        rest = f'undecided against {"the other" if decided else "all"} {n}'
        made.append(f'{variant}: ' + '; '.join([*decided.values(), rest]) + '.')
    return bullets(made)


def by_half(rows: pd.DataFrame) -> str:
    changed, made = tables.changed_by_half(rows), []
    for variant, verdicts in changed.groupby('variant'):
        made.append(f'{variant}: ' + '; '.join(tables.verdict_sentences(verdicts).values()) + '.')
    return bullets(made) or 'No verdict is a different one.'


def claim_in_words(standard: pd.DataFrame) -> str:
    "A bullet per opponent: is the rule met, and the differences over seeds."
    made, claim = [], statistics.claim_as_fixed(standard)
    best = statistics.best_single_expert(standard[is_benchmark(standard)])
    for opponent, found in claim.iterrows():
        other = best if opponent == statistics.HINDSIGHT else opponent
        over_seeds = statistics.seed_differences(
            standard[is_benchmark(standard)], statistics.MAIN_METHOD, other
        )
        each = [
            f'{d.variant} {tables.signed(d["mean"])} [{tables.signed(d.low)}, '
            f'{tables.signed(d.high)}]'
            for _, d in over_seeds.iterrows()
        ]
        name = tables.METHOD_WORDS[opponent]
        made.append(
            f'Against {name}: **{found.rule}** (interval over seeds above 0 on {found.above_0} of '
            f'{found.measured}: {", ".join(each)}).'
        )
    return bullets(made)


def ablations_in_words(rows: pd.DataFrame) -> str:
    ablations = tables.ablation_table(tables.development_rows(rows))
    made = []
    for variant, found in ablations.groupby('variant'):
        decided = found[found.verdict != 'undecided']
        named = [f'`{r.setting}` ({r.verdict})' for _, r in decided.iterrows()]
        open_ = found[found.verdict == 'undecided']
        low, high = (tables.signed(end) for end in (open_['mean'].min(), open_['mean'].max()))
        made.append(
            f'{variant}: {len(open_)} of {len(found)} settings are undecided, with mean '
            f'differences from {low} to {high}'
            + (f'; decided: {", ".join(named)}.' if named else '.')
        )
    return bullets(made)


def claim_in_short(standard: pd.DataFrame) -> str:
    claim = statistics.claim_as_fixed(standard)
    met = [tables.METHOD_WORDS[o] for o in claim.index[claim.rule == 'met']]
    return (
        f'The claim that was fixed before the run needs three opponents; its rule is met against '
        f'{len(met)} of {len(claim)} ({", ".join(met) or "none"}).'
    )


def in_brief(rows: pd.DataFrame) -> str:
    "The key comparisons, as in the README."
    main = confirmatory(rows)
    lead = (
        "Over three families of data sets, the mixture's `final_score` is (difference, 95 % "
        'interval)'
    )
    of_main = over_families(main[is_benchmark(main)], KEY_OPPONENTS, probability=False)
    return f'{wrapped(lead)}\n\n{of_main}'


def short(rows: pd.DataFrame) -> str:
    "The key comparisons, those of the other stage 3, and the claim."
    main, other = confirmatory(rows), tables.with_stage3_of(rows, 'stage-3')
    two = ['single_network', 'cfa_loss', 'moe_released']
    of_other = over_families(other[is_benchmark(other)], two, probability=False)
    standard = next(iter(statistics.comparable_rows(main).values()))
    parts = [f'and {NINE} it is', of_other, wrapped(claim_in_short(standard))]
    return '\n\n'.join([in_brief(rows), *parts])


def found(rows: pd.DataFrame) -> str:
    "All verdicts in words."
    main, other = confirmatory(rows), tables.with_stage3_of(rows, 'stage-3')
    standard = next(iter(statistics.comparable_rows(main).values()))
    other_standard = next(iter(statistics.comparable_rows(other).values()))
    benchmarks, leakfree = main[is_benchmark(main)], main[~is_benchmark(main)]
    others = other[is_benchmark(other)]
    return '\n\n'.join(
        [
            '### Over the three families',
            'The mixture is',
            over_families(benchmarks),
            sensitivity(benchmarks),
            '### On each data set',
            'The mixture is, on',
            of_data_sets(main),
            wrapped(
                'If `n_train` is the whole training half instead of the labelled people, the '
                'verdicts that change are, on'
            ),
            by_half(main),
            '### Without the leaking columns',
            wrapped('Two families are left (bail; math and por). The mixture is'),
            over_families(leakfree),
            sensitivity(leakfree),
            '### With the other stage 3',
            wrapped(f'The mixture {NINE} is, over the three families,'),
            over_families(others),
            sensitivity(others),
            'On single data sets it is, on',
            of_data_sets(other),
            '### The claim, as it was fixed beforehand',
            claim_in_words(standard),
            wrapped(f'The same rule for the mixture {NINE}:'),
            claim_in_words(other_standard),
            '### Ablations',
            wrapped('The released mixture minus that of the setting, five development pairs, on'),
            ablations_in_words(rows),
        ]
    )


# --- Tables


def of_verdicts(rows: pd.DataFrame, who: str) -> Iterator[Section]:
    "Over families and on each data set, for the benchmarks and without the leak."
    for some, what in (
        (rows[is_benchmark(rows)], 'the benchmarks'),
        (rows[~is_benchmark(rows)], 'without the leak'),
    ):
        if len(some):
            title = f'{who} minus the other method, {what}'
            over = statistics.family_verdicts(some)
            yield f'{title}, over families', over[over.families > 1]
            yield f'{title}, on each data set', statistics.data_set_verdicts(some)


def one_by_one(groups: dict[str, pd.DataFrame]) -> Iterator[Section]:
    "Means of a variant, and the methods that dominate the mixture; no verdicts."
    for heading, rows in groups.items():
        better = statistics.dominators(rows).items()
        yield (
            f"Means better than the mixture's in all three aims ({heading}; no verdict)",
            pd.DataFrame(
                [dict(variant=v, methods=', '.join(names) or 'none') for v, names in better]
            ),
        )
        for variant in [v for v in VARIANTS if v in set(rows.variant)]:
            yield f'{variant}: {heading}', tables.method_table(rows, variant)


def sections(rows: pd.DataFrame) -> Iterator[Section]:
    "Everything that the page shows."
    main, other = confirmatory(rows), tables.with_stage3_of(rows, 'stage-3')
    groups = statistics.comparable_rows(main)
    standard = next(iter(groups.values()), main)
    yield from of_verdicts(main, 'The mixture')
    yield 'Verdicts that `n_train` as the training half changes', tables.changed_by_half(main)
    yield from of_verdicts(other, 'The mixture with the other stage 3')
    yield (
        'The claim as it was fixed, on the standard split',
        statistics.claim_as_fixed(standard).reset_index(),
    )
    yield (
        'The same rule for the other stage 3',
        statistics.claim_as_fixed(other).reset_index(),
    )
    yield from one_by_one(groups)
    yield 'What chance alone gives (standard split)', statistics.beyond_chance(standard)
    of_key_methods = main[main.method.isin(list(statistics.KEY_METHODS))]
    yield 'Noise of `final_score`', statistics.score_noise(of_key_methods).reset_index()
    yield (
        'Does a choice by validation carry over to the test (`final_score`, standard split)?',
        statistics.validation_agreement(standard),
    )
    yield (
        'With and without the leaking columns (standard split)',
        tables.with_and_without_leak(standard),
    )
    yield (
        'Utility: the ceiling of the default backbone and space, other settings, and the mark',
        tables.utility_ceiling(rows),
    )
    yield 'Beside published figures', tables.beside_published(standard)
    yield (
        'Ablations: the released mixture minus the mixture of the setting, `final_score`',
        tables.ablation_table(tables.development_rows(rows)),
    )


def filled(page: Path, **made: str) -> str:
    "The page with what stands between its marks made anew."
    text = page.read_text(encoding='utf-8')
    for name, new in made.items():
        begin, end = f'<!-- {name}: made by docs/study_tables.py -->', f'<!-- end of {name} -->'
        old = re.compile(f'{re.escape(begin)}.*?{re.escape(end)}', re.S)
        if len(old.findall(text)) != 1:
            sys.exit(f'{page.name} needs exactly one part between {begin} and {end}')
        before, after = old.split(text)
        text = f'{before}{begin}\n\n{new}\n\n{end}{after}'
    return text


def pages() -> dict[Path, str]:
    "Both pages with everything made anew."
    rows = Ledger(DOCS / 'study').rows()
    all_tables = [f'### {heading}\n\n{markdown(t)}' for heading, t in sections(rows) if len(t)]
    parts = dict(short=short(rows), verdicts=found(rows), tables='\n\n'.join(all_tables))
    return {PAGE: filled(PAGE, **parts), README: filled(README, short=in_brief(rows))}


if __name__ == '__main__':
    made = pages()
    if sys.argv[1:] == ['--check']:
        differ = [p.name for p, text in made.items() if text != p.read_text(encoding='utf-8')]
        if differ:
            sys.exit(f'{differ} differ from docs/study/runs.csv: run python docs/study_tables.py')
        sys.exit()
    for page, text in made.items():
        page.write_text(text, encoding='utf-8')
    print(f'{PAGE}: {made[PAGE].count("### ")} sections')
