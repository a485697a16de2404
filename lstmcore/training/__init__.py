"""From sequences to a saved, evaluated model: readout, losses, optimizers, trainer, model files."""

from __future__ import annotations

from lstmcore.training.batches import batches_by_length, pad, split
from lstmcore.training.callbacks import Callback, MLflow, TensorBoard, epoch_numbers
from lstmcore.training.clipping import clip_by_global_norm, global_norm
from lstmcore.training.files import load_model, save_model
from lstmcore.training.history import Epoch, History
from lstmcore.training.judging import Evaluation
from lstmcore.training.learning import DivergedError
from lstmcore.training.losses import CrossEntropy, GaussianLoss, Loss, MeanSquaredError, QuantileLoss
from lstmcore.training.model import SequenceModel
from lstmcore.training.model_card import save_folder
from lstmcore.training.optimizers import SGD, Adam, AdamW, Optimizer
from lstmcore.training.plots import plot_history
from lstmcore.training.readout import Readout
from lstmcore.training.scaling import Standardizer
from lstmcore.training.schedules import Cosine, OnPlateau, Schedule, StepDecay, WarmUp
from lstmcore.training.streams import SequenceSource
from lstmcore.training.trainer import Trainer

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Callback",
    "Cosine",
    "CrossEntropy",
    "DivergedError",
    "Epoch",
    "Evaluation",
    "GaussianLoss",
    "History",
    "Loss",
    "MLflow",
    "MeanSquaredError",
    "OnPlateau",
    "Optimizer",
    "QuantileLoss",
    "Readout",
    "Schedule",
    "SequenceModel",
    "SequenceSource",
    "Standardizer",
    "StepDecay",
    "TensorBoard",
    "Trainer",
    "WarmUp",
    "batches_by_length",
    "clip_by_global_norm",
    "epoch_numbers",
    "global_norm",
    "load_model",
    "pad",
    "plot_history",
    "save_folder",
    "save_model",
    "split",
]
