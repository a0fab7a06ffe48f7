"""Passes that make a finished model smaller."""

from plait.compress.weights import Quantising as Quantising
from plait.compress.weights import from_gguf as from_gguf
from plait.compress.weights import is_quantised as is_quantised
from plait.compress.weights import limited as limited
from plait.compress.weights import quantise as quantise
from plait.compress.weights import restore as restore
