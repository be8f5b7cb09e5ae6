"""Evaluation: noise-free returns of policies, and the meta-test, in which a frozen objective trains fresh agents."""
