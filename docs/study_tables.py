"""Write the tables of docs/study.md from the study's rows: `python docs/study_tables.py`.

With --check the page is only compared. The tables between the two marks come from
docs/study/runs.csv; the text around them is written by hand.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

import pandas as pd  # noqa: E402

from moe_expert.study import statistics, tables  # noqa: E402
from moe_expert.study.ledger import Ledger  # noqa: E402
from moe_expert.study.plan import BENCHMARKS, MAIN, VARIANTS  # noqa: E402

PAGE = DOCS / 'study.md'
BEGIN, END = '<!-- tables: made by docs/study_tables.py -->', '<!-- end of tables -->'
Section = tuple[str, pd.DataFrame]  # heading, table


def cell(value) -> str:
    if isinstance(value, float):
        return '–' if pd.isna(value) else f'{value:.3f}'
    return '–' if value is None else str(value).replace('|', '\\|')


def markdown(table: pd.DataFrame) -> str:
    rows = [list(map(cell, row)) for row in table.itertuples(index=False)]
    head = [str(column) for column in table.columns]
    return '\n'.join('| ' + ' | '.join(r) + ' |' for r in [head, ['---'] * len(head), *rows])


def together(groups: dict[str, pd.DataFrame]) -> Iterator[Section]:
    "All data sets together, and the methods that dominate the mixture."
    for heading, rows in groups.items():
        benchmarks = rows[rows.variant.isin(BENCHMARKS)]
        yield (
            'All four data sets together (exploratory): the mixture minus the other, '
            f'`final_score` ({heading})',
            statistics.pooled_differences(benchmarks),
        )
        better = statistics.dominators(rows).items()
        yield (
            f"Methods whose means are better than the mixture's in all three aims ({heading})",
            pd.DataFrame(
                [dict(variant=v, methods=', '.join(names) or 'none') for v, names in better]
            ),
        )


def one_by_one(groups: dict[str, pd.DataFrame]) -> Iterator[Section]:
    "A table per variant. Holm's correction is over the benchmarks, or over the other variants."
    for heading, rows in groups.items():
        for variant in [v for v in VARIANTS if v in set(rows.variant)]:
            alike = rows[rows.variant.isin(BENCHMARKS) == (variant in BENCHMARKS)]
            yield f'{variant}: {heading}', tables.method_table(alike, variant)


def other_stage3(rows: pd.DataFrame) -> Iterator[Section]:
    "The claim and the differences with the mixture of the setting `stage-3`."
    title = 'The other stage 3 minus the other method'
    for heading, group in statistics.comparable_rows(
        tables.with_stage3_of(rows, 'stage-3')
    ).items():
        benchmark, score = group.variant.isin(BENCHMARKS), f'`final_score` ({heading})'
        if heading.startswith('standard'):
            verdict = statistics.claim_verdict(group).reset_index()
            yield 'The claim with the other stage 3, on the standard split', verdict
        yield f'{title}, {score}', tables.differences_to_all(group[benchmark])
        pooled = statistics.pooled_differences(group[benchmark])
        yield f'{title}, all four data sets together (exploratory), {score}', pooled
        if not benchmark.all():
            yield (
                f'{title}, without the leak, {score}',
                tables.differences_to_all(group[~benchmark]),
            )


def sections(rows: pd.DataFrame) -> Iterator[Section]:
    "Everything that the page shows."
    main = rows[(rows.phase == 'confirmatory') & (rows.setting == MAIN)]
    groups = statistics.comparable_rows(main)
    standard = next(iter(groups.values()), main)
    yield 'The claim, on the standard split', statistics.claim_verdict(standard).reset_index()
    yield from together(groups)
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
    yield from other_stage3(rows)


def text() -> str:
    "The page with its tables made anew."
    rows = Ledger(DOCS / 'study').rows()
    made = [f'### {heading}\n\n{markdown(t)}' for heading, t in sections(rows) if len(t)]
    before, rest = PAGE.read_text(encoding='utf-8').split(BEGIN)
    return before + '\n\n'.join([BEGIN, *made, END]) + rest.split(END)[1]


if __name__ == '__main__':
    made = text()
    if sys.argv[1:] == ['--check']:
        if made != PAGE.read_text(encoding='utf-8'):
            sys.exit(
                'docs/study.md differs from docs/study/runs.csv: run python docs/study_tables.py'
            )
        sys.exit()
    PAGE.write_text(made, encoding='utf-8')
    print(f'{PAGE}: {made.count("### ")} sections')
