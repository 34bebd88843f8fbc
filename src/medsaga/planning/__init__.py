"""What a run will take in memory, before it starts, and which settings fit."""
