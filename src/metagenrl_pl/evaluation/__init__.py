"""Noise-free returns, and fresh agents that a frozen objective trains: the meta-test."""
