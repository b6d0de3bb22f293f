"""WARP: Weight Averaged Rewarded Policies (arXiv 2406.16768).

The files at the top are the paper; read them in the order rollout, train, merge, evaluate, warp.
Imports run one way: store (bytes, names, dictionaries) <- world (models, prompts, rewards) <- engine
(where things are computed) <- config, rollout, merge <- train <- evaluate <- folders, tasks, summary
(the algorithm's parts as results of a store) <- warp <- study.

Shapes, here and in every module:
    B  completions of a batch        P  prompt tokens, padded on the left
    N  completion tokens             V  vocabulary
    M  runs that are merged
"""

import os

# Threads that spin while they wait make every step up to 20 times slower as soon as any other
# process wants a core (LOG.md, 2026-11-22). It takes effect if torch is not imported yet.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A short spin, some 20 microseconds, saves one run on all cores a tenth of its time (LOG.md, 2026-11-23).
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
# For the processes that train: glibc gives freed memory back, and a gigabyte of new pages a step is
# a tenth of its time (LOG.md, 2026-11-23).
os.environ.setdefault("MALLOC_MMAP_MAX_", "0")
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**40))
# NumPy's dots of a merge's short pieces gain nothing from threads that wait by spinning, and with one
# thread they give the same bits on any number of cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# MKL's small products, those of the attention while decoding, have other last bits in a thread's own
# buffer. Asked to, it gives the same bits with any number of threads, no slower (LOG.md, 2026-11-23).
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
