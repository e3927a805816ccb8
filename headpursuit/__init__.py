"""Find the attention heads behind a concept, read what they write, and turn them up or down."""
__version__ = "0.2.0"

from headpursuit.capture import HeadStats, capture
from headpursuit.dictionary import Concept, Dictionary, builtin_concepts
from headpursuit.editing import HeadEdit
from headpursuit.explorer import explore
from headpursuit.generation import answer, generate, off_target, side_effects
from headpursuit.heads import Head, HeadModel
from headpursuit.presets import load_model, pocket_path
from headpursuit.pursuit import Pursuit, matching_pursuit, omp, somp
from headpursuit.ranking import (
    HeadRanking, atlas, null_scores, random_heads, rank_by_logit_lens, rank_heads, stand_out,
)

__all__ = [
    'Concept', 'Dictionary', 'Head', 'HeadEdit', 'HeadModel', 'HeadRanking', 'HeadStats', 'Pursuit',
    'answer', 'atlas', 'builtin_concepts', 'capture', 'explore', 'generate', 'load_model',
    'matching_pursuit', 'null_scores', 'off_target', 'omp', 'pocket_path', 'random_heads',
    'rank_by_logit_lens', 'rank_heads', 'side_effects', 'somp', 'stand_out',
]
