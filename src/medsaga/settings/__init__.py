"""What a user may choose, and what a run has settled on."""
