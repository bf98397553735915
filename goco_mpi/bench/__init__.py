"""``goco bench``: figures measured against a raw limit, a promise, or a peer, in one and the same run.

Bounds are what the product aims at; they inform people and fail nobody, unless ``--strict`` asks for it.
"""
