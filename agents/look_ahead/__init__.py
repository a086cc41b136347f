"""Upper references: plans of the fleet view, chosen by look-ahead on clones of the very world that is played.

`config` says what is looked for, `clones` copies worlds quickly, `futures` plays what a plan leads to,
`verdicts` says what an episode is worth, `planning` chooses plan after plan, `playing` plays what is missing,
`records` keeps episodes and makes the page's table. `labels` makes pairs of observation and plan of these,
`distilling` a policy of the labels.
"""
