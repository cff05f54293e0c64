"""Memory, communication and time of a run on W ranks, before anyone queues for them.  No GPU, no weights."""
