"""What docs/six_skills.md says around its tables; page.py fills in the figures that it looks up."""

TOP = """\
# Six skills in each other's way

Written by `python benchmarks/six_skills/page.py > docs/six_skills.md` from the rows in `examples/six_skills/measured`; a test
holds that it is what the command writes. What the six are: [examples/six_skills](../examples/six_skills/README.md).

```bash
BASE=$(python -c 'from mcp_server.system import paths; print(paths.demo_base_dir())')   # made by `model-merging demo`
python benchmarks/six_skills/run.py "$BASE"                         # as here: dev, {limit} prompts a suite; resumable
python benchmarks/six_skills/run.py "$BASE" --split test --limit 0 --only sources  # test, 120 a suite; then --only first
python benchmarks/six_skills/run.py "$BASE" --only search --dtype bfloat16 --trials 16
```

Percentages are recovered gain: merged minus base over expert minus base. A merge is as good as the skill that keeps less. One
base of 135 M parameters, one training seed, {limit} development prompts a suite, so the interval of a share near a half is
± 17 points: neighbouring columns are not told apart, and nothing here speaks of larger models. Time allowed whole changes
(task_arithmetic, λ 1) for every pair and the other recipes for some: an empty cell was not run, the last table lists what was."""
SAYS = """\
## What it says

- **Cosines do not clear a merge.** Of 13 pairs at cosines within ± .01 no recipe with equal weights keeps more than 16 % of the
  worse skill: one source has the word everywhere. The sum of all six keeps nothing of any.
- **Who leaves the others alone, merges.** `notes` and `refuse` were trained with replay and answer none of each other's prompts:
  their sum keeps 100 and 76 %, at λ 0.7 97 and 31 %, TIES 100 and 0 %. Where nothing leaks, whole changes are right.
- **One skill in two adapters is another matter.** `lights` and `home` have a form and {shared} of the 80 examples of `lights` in
  common (cosine .21): summed at λ 0.7 they keep 114 and 81 %, whole 104 and 62 %, under TIES with equal weights 61 and 67 %.
- **When to say no.** Where each of two sources answers more than half of the other's prompts in its own way, and their changes do
  not overlap, `recommend` says `route`: nine pairs, of which none keeps more than 12 % with equal weights. A search of unequal
  ones keeps 79, 76, 68 and 49 % of four on the test split, and 31 % or less of the others: so it says now that such a
  search may keep a part. Four more pairs that lose a skill get `merge_with_caution`, because only one of the two leaks.
- **What the check does not see.** `home` answers .08 of the medicine prompts, and their sum still gives none of the refusals:
  `refuse` is a small change that others disturb. Measure each skill after the merge.
- **What equal weights lose, unequal ones may keep.** On every test prompt a search keeps 87 % of the worse skill of `home` and
  `refuse`, where λ 0.7 keeps 54, and of `lights` and `home` more than each alone had. With three seeds of six minutes on 24
  prompts the first pair kept 83, 18 and 36 %
  ([measured](../benchmarks/evaluate/results.md#the-search-beside-the-shortlist)): what `recommend` begins with is a start for
  `sweep`, not its end. The three pairs with `terse` or `verbose` that it would merge with caution no search saves.
- **Thirty-two prompts flatter a search.** Of `terse` and `notes` its choice kept 74 % on the development split and 16 on the test
  split."""
ALONE = """## Who answers whom

Share of a context's prompts (12 each) that a source alone answers in its own way: the cross-context check. On its own prompts it
should be 1, elsewhere 0; `lights` and `home` share their form."""
TWO = """## Pairs

Recovered gain of the skill that keeps less, in percent, with weights of 1; the best in bold. `cosine` is that of the two changes,
`leak` the rate at which one of the two answers the other's prompts in its own way, the higher direction; `both` the lower one."""
PREDICTS = """\
## What predicts a loss

Over {} pairs, added whole (task_arithmetic, λ 1), the rank correlation of the kept gain is {:.2f} with the leak, {:.2f} with the
leak of both and {:.2f} with the cosine's size; skill by skill, of what one keeps with the rate at which the other answers its
prompts, {:.2f}. Most pairs keep nothing of one skill, so little is left to order."""
PEFTS = """## Beside PEFT

`add_weighted_adapter` with weights of 1 (density 0.5), measured in the same way: recovered gain of the skill that keeps less. It
adds factors and not products, and takes adapters of unequal rank for `svd` alone."""
SEARCHED = """\
## Beside the search, on the test split

Every test prompt ({n} a suite), on which nothing was chosen: what `recommend` begins with when it has the cross-context check,
and what a search chose on the dev split, begun with the plan and the recipes above (`run.py --only search`, the goals of
`sweep --minutes`; `tried` counts all). {told}"""
