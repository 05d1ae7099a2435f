"""What a company of actors lives in: mail, board and ledger in shared memory, supervision, HTTP.

It computes nothing: what an actor does is written in `actors`.
"""
