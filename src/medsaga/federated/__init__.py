"""Several hospitals train one model without pooling their images: weights travel, data stay.

Flower (``flwr``, the extra ``federated``) carries all messages.
"""
