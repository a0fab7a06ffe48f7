"""Passes that make a finished model smaller."""

from plait.compress.calibration import moments as moments
from plait.compress.pruning import importance as importance
from plait.compress.pruning import prune as prune
from plait.compress.sparsity import magnitude as magnitude
from plait.compress.sparsity import two_of_four as two_of_four
from plait.compress.weights import Quantising as Quantising
from plait.compress.weights import from_gguf as from_gguf
from plait.compress.weights import is_quantised as is_quantised
from plait.compress.weights import limited as limited
from plait.compress.weights import numbers as numbers
from plait.compress.weights import quantise as quantise
from plait.compress.weights import restore as restore
