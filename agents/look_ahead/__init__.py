"""Upper references: plans of the fleet view, chosen by look-ahead on clones of the very world that is played.

`config` says what is looked for, `clones` copies worlds quickly, `futures` plays what a plan leads to,
`verdicts` says what an episode is worth, `planning` chooses plan after plan, `records` keeps episodes and
makes the page's table.
"""
