"""How agents and objective learn: inner step, critic update, policy update, meta update, and the learner that runs them in turn.

Start with `learner`. The three updates are pure functions of tensors and name the paper's equations.
"""
