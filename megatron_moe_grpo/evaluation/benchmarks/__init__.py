"""Benchmarks read from their own files: questions as their tools ask them, scores as their tools count them."""
