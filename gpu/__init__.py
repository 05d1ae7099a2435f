"""What computes: models, attention, the KV pool, the sampler, weights.

The only place that knows torch; without Trio, mail or clock.
"""
