"""What the verbs of the command line do with a run: prepare it, train it, test it, go on with it."""
