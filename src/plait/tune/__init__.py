"""A finished model taught something more by a small part of it."""

from plait.tune.attach import attach as attach
from plait.tune.attach import detach as detach
from plait.tune.attach import fill as fill
from plait.tune.attach import load_small as load_small
from plait.tune.attach import names as names
from plait.tune.attach import select as select
from plait.tune.attach import small as small
from plait.tune.attach import using as using
from plait.tune.merge import merge as merge
from plait.tune.merge import mergeable as mergeable
from plait.tune.merge import unmerge as unmerge
from plait.tune.methods import IA3 as IA3
from plait.tune.methods import METHODS as METHODS
from plait.tune.methods import Adapter as Adapter
from plait.tune.methods import BitFit as BitFit
from plait.tune.methods import Full as Full
from plait.tune.methods import HeadOnly as HeadOnly
from plait.tune.methods import LoRA as LoRA
from plait.tune.methods import Prefix as Prefix
from plait.tune.methods import Prompt as Prompt
from plait.tune.methods import Tuning as Tuning
from plait.tune.methods import described as described
from plait.tune.methods import tuning_of as tuning_of
from plait.tune.starting import begin as begin
