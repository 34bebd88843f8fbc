"""Which unlabelled cases to annotate next; `medsaga.suggest.run.suggest` is the entry."""
