"""Several hospitals train one model without pooling their images: weights travel, data stay. Flower carries the messages."""
