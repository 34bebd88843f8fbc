"""Several hospitals train one model without pooling their images: weights travel, data stay.

Flower (``flwr``, the extra ``federated``) carries all messages; it tells nobody that it is used.
"""

import os

# Before Flower is imported, which reads them then; its own processes inherit them.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
