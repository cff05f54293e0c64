"""Verifiable rewards: text in, a number out."""
