"""Fine-tuning a model on the labelled cases of a dataset."""
