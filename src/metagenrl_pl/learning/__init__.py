"""How agents and objective learn: the inner step, the critic, policy and meta updates, and the learner that runs them in turn.

Start with `learner`. The three updates are pure functions on tensors, each beside the paper's equation.
"""
