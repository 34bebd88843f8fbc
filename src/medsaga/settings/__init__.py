"""What a user may choose, and what a run was resolved to."""
