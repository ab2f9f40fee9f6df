"""Numbers and pictures of a training, on their way to MLflow."""

import tempfile
import time
from pathlib import Path

import numpy as np
from mlflow.entities import Metric
from PIL import Image

from facelab import storage
from facelab.tracking.client import client_of

_BATCH = 1000  # MLflow's limit for one log_batch


class RunLogger:
    """For the training loop, on rank 0: metrics in batches, pictures to OUTPUT and to the run's artifacts."""

    def __init__(self, uri: str, run_id: str, output: str):
        self.uri, self.run_id, self.output = uri, run_id, output
        self.pending: list[Metric] = []
        self.pictures: list[tuple[str, np.ndarray]] = []

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Keep until flush; inf and nan are left out, as MLflow's databases differ in what they make of them."""
        now = int(time.time() * 1000)
        self.pending += [Metric(k, float(v), now, step) for k, v in values.items() if np.isfinite(v)]

    def image(self, name: str, picture: np.ndarray) -> None:
        self.pictures.append((name, picture))

    def flush(self) -> None:
        client = client_of(self.uri)
        for start in range(0, len(self.pending), _BATCH):
            client.log_batch(self.run_id, metrics=self.pending[start : start + _BATCH])
        for name, picture in self.pictures:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / Path(name).name
                Image.fromarray(picture).save(file)
                storage.write_bytes(storage.join(self.output, name), file.read_bytes())
                client.log_artifact(self.run_id, str(file), str(Path(name).parent))
        self.pending, self.pictures = [], []
