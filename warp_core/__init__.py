"""WARP: Weight Averaged Rewarded Policies (arXiv 2406.16768).

Imports run one way: config, assets -> models, prompts, reward -> rollout, merge, evaluate ->
train -> warp; runs (the run folder), plots and narrative (Russian tables and sentences) beside.

Shapes, here and in every module:
    B  completions of a batch        P  prompt tokens, padded on the left
    N  completion tokens             V  vocabulary
    M  runs that are merged
"""
