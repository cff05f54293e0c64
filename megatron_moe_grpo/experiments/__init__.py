"""Tables of runs: cells x seeds, what they cost, and the paper's numbers beside ours."""
