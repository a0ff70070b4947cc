"""Lottery tickets in a Lightning training that knows nothing of them: three lines, marked `# ticket`.

    python examples/callback.py [FOLDER]

Trains a small network on scikit-learn's handwritten digits, dense and then twice at a lower density from epoch 1 on.
"""

import sys
import tempfile

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lth_scale import PruningCallback  # ticket


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 100), nn.BatchNorm1d(100), nn.ReLU(), nn.Linear(100, 10))

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        self.log("accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)}


def main() -> None:
    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    data = TensorDataset(images.float() / 16, labels)
    train = DataLoader(torch.utils.data.Subset(data, range(1500)), batch_size=50, shuffle=True)
    validation = DataLoader(torch.utils.data.Subset(data, range(1500, len(data))), batch_size=300)

    folder = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
    tickets = PruningCallback(folder, rate=0.5, rewind="1ep")  # ticket
    for _ in range(3):
        pl.seed_everything(0, verbose=False)
        trainer = pl.Trainer(
            max_epochs=5,
            callbacks=[tickets],  # ticket
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Net(), train, validation)
        accuracy = trainer.callback_metrics["accuracy"].item()
        print(f"round {tickets.round}: {100 * tickets.mask.density:5.1f} % of the weights, accuracy {accuracy:.3f}")
    print(f"masks, rewind point and results are in {folder}")


if __name__ == "__main__":
    main()
