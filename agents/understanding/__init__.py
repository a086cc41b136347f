"""What a scheduler of the per-request view has learned: where it decides what, and on what that rests.

`settings` says what is asked, `features` names and scales the numbers of an observation, `decisions` says
what a decision comes to when it is executed, `subject` is what is explained, `visits` are states that it met.
Then `maps` shows decisions over two features, `importance` what becomes of them without some features, `tree`
a small decision tree that stands for it, `arena` what all of this costs in the simulator. `explain` puts the
parts together; `figures` and `page` show the result.
"""
