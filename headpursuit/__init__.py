"""Find the attention heads behind a concept, read what they write, and turn them up or down."""
__version__ = "0.1.0"

from headpursuit.capture import HeadStats, capture
from headpursuit.dictionary import Concept, Dictionary, builtin_concepts
from headpursuit.editing import HeadEdit
from headpursuit.experiments import answer, effects, flip_heads, generate, heads_needed, off_target, pocket_path
from headpursuit.explorer import explore
from headpursuit.heads import Head, HeadModel
from headpursuit.pursuit import Pursuit, matching_pursuit, omp, somp
from headpursuit.ranking import HeadRanking, atlas, random_heads, rank_by_logit_lens, rank_heads
from headpursuit.worlds import reading_questions

__all__ = ['Concept', 'Dictionary', 'Head', 'HeadEdit', 'HeadModel', 'HeadRanking', 'HeadStats', 'Pursuit', 'answer', 'atlas', 'builtin_concepts',
           'capture', 'effects', 'explore', 'flip_heads', 'generate', 'heads_needed', 'matching_pursuit', 'off_target', 'omp', 'pocket_path',
           'random_heads', 'rank_by_logit_lens', 'rank_heads', 'reading_questions', 'somp']
